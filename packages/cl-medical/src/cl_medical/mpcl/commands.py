"""The verbs of ``cl-medical mpcl``."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from contrastive_core.cli import Flat, options_of
from contrastive_core.errors import InputError, reason, require
from contrastive_core.files import json_text, refuse_existing, write_csv
from contrastive_core.tables import print_rows
from contrastive_core.training import RunFolder
from cyclopts import Parameter

from cl_medical.mpcl.data import read_training
from cl_medical.mpcl.evaluation import (
    Part,
    cases_of,
    compare_runs,
    evaluate_cases,
    prototype_rows,
)
from cl_medical.mpcl.ihpg import spread
from cl_medical.mpcl.inference import Segmenter, segment_files
from cl_medical.mpcl.plan import make_plan
from cl_medical.mpcl.report import training_report
from cl_medical.mpcl.system import Settings
from cl_medical.mpcl.training import train_segmenter
from cl_medical.volumes.cases import read_cases
from cl_medical.volumes.inspection import inspect_cases
from cl_medical.volumes.names import find_volumes, is_nifti
from cl_medical.volumes.nifti import write_nifti
from cl_medical.volumes.prepare import Task, prepare_cases
from cl_medical.volumes.reading import read_image
from cl_medical.volumes.samples import write_samples
from cl_medical.volumes.splits import SplitSettings


def sample_data(out: Path, *, cases: int = 16, unlabelled: int = 6, seed: int = 0, overwrite: bool = False) -> None:
    """Write small simulated MR volumes with labels, made from the MNI152 template and its tissue maps.

    The volumes are simulated: one anatomy, warped, with bias field, noise and contrast of their own.

    Args:
        out: Folder to write to.
        cases: Volumes, 48 x 56 x 48 voxels of 4 mm.
        unlabelled: How many of them get no label map.
        seed: Seed of the volumes.
        overwrite: Replace volumes that are already there.
    """
    written = write_samples(out, cases=cases, unlabelled=unlabelled, seed=seed, overwrite=overwrite)
    print(f"{len(written)} simulated volumes in {out}, {len(written) - unlabelled} of them labelled")


def prepare(
    raw: Path,
    out: Path,
    *,
    task: Task = "general",
    merge_labels: bool = False,
    split: Annotated[SplitSettings, Flat] = SplitSettings(),
) -> None:
    """Raw NIfTI or DICOM scans into cases, split lists and dataset.json.

    Args:
        raw: Folder with images/ and labels/ (equal names); an image is a NIfTI file or a folder with a DICOM series.
        out: New folder.
        task: Preset of the published data sets: la, pancreas, brats; or general, which only reorders to RAS.
        merge_labels: Take all structures as one; the published tasks do.
        split: Sizes of the parts.
    """
    data, parts = prepare_cases(raw, out, task=task, merge=merge_labels, split=split)
    counts = {name: len(names) for name, names in dataclasses.asdict(parts).items()}
    print(f"{len(data.cases)} cases in {out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def inspect(data: Path, *, json: bool = False) -> None:
    """What a folder of cases holds: counts, sizes, classes, and what would be refused and why.

    Args:
        data: Folder of cases.
        json: Print JSON instead of tables.
    """
    findings = inspect_cases(data)
    if json:
        print(json_text(findings))
        return
    print_rows([{"item": name, "value": value} for name, value in findings["summary"].items()])
    for name in ("classes", "refused"):
        if findings[name]:
            print()
            print_rows(findings[name], title=name)


def train(
    data: Path,
    out: Path,
    *,
    settings: Annotated[Settings, Flat] = Settings(),
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train MPCL or a baseline on a few labelled and many unlabelled volumes.

    Args:
        data: Folder of cases; images without a label map are unlabelled.
        out: Run folder.
        settings: Method, data, network, length.
        dry_run: Print the plan and stop.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    options = options_of(train, locals())
    if dry_run:
        print(make_plan(data, settings))
        return
    with RunFolder.create(out, options, resume=resume, overwrite=overwrite) as run:
        plan = make_plan(data, settings)
        print(plan, file=sys.stderr)
        plan.record(run)
        segmenter = train_segmenter(read_training(plan, settings), settings, run)
        method = {"method": settings.objective.method, "preset": settings.objective.preset}
        segmenter.save(run, method)
        part = "validation" if plan.split.validation else "labelled"
        scores = evaluate_cases(segmenter, [plan.cases.cases[name] for name in getattr(plan.split, part)])
        spreads = dict(zip(plan.data.classes, spread(segmenter.prototypes.centers).tolist(), strict=True))
        run.write_results({**method, "prototype_spread": spreads, "evaluation": {part: scores.to_dict()}})
        training_report(run, segmenter, plan, settings, scores).write(run.report)
    print(f"mean Dice {scores.mean('dice'):.3f} on {part} cases; segmenter in {out}, report in {run.report}")
    print(f"next: cl-medical mpcl evaluate {out} {data}, or cl-medical mpcl predict {out} IMAGES OUT")


def evaluate(
    run: Path,
    data: Path,
    *,
    split: Part = "test",
    device: str = "auto",
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Dice, Jaccard and surface distances of a run, case by case.

    hd95 is the 95th percentile of both directed distance sets pooled (medpy's form, the published one); hd95_max is the
    larger of the two directed percentiles (MONAI's). An empty prediction has Dice 0 and the volume's diagonal as
    distance, and is flagged. The results also go to the run's results.json.

    Args:
        run: Run folder of `train`.
        data: Folder of cases.
        split: Which cases: test or validation of the run's split, or all labelled ones of the folder.
        device: cpu, cuda, or auto.
        out: CSV to write as well, one row a case and structure.
        overwrite: Replace an existing CSV.
        json: Print JSON instead of tables.
    """
    if out is not None:
        refuse_existing(out, overwrite)
    segmenter, folder = Segmenter.load(run, device), RunFolder.open(run)
    scores = evaluate_cases(segmenter, cases_of(folder, read_cases(data), split), progress=True)
    results = folder.results()
    results.setdefault("evaluation", {})[split] = scores.to_dict()
    folder.write_results(results)
    if out is not None:
        write_csv(out, scores.rows)
    if json:
        print(json_text({"run": str(run), "split": split, **scores.to_dict()}))
        return
    print_rows(scores.case_rows())
    print_rows(scores.class_rows(), title="\nmean over cases")
    print_rows(scores.confusion_rows(), title="\nvoxels by true and predicted class")
    empty = sum(row["empty"] for row in scores.rows)
    if empty:
        print(f"{empty} of {len(scores.rows)} structures are empty in prediction or reference")


def predict(
    run: Path,
    volumes: Path,
    out: Path,
    *,
    probabilities: bool = False,
    prototype_map: bool = False,
    winners: bool = False,
    largest_component: bool | None = None,
    batch_size: int = 1,
    device: str = "auto",
    overwrite: bool = False,
) -> int:
    """Segment new volumes and write NIfTI in their own space.

    Goes on after a volume that cannot be used, lists those at the end and exits with status 1.

    Args:
        run: Run folder of `train`.
        volumes: NIfTI or HDF5 file, DICOM series, or folder of them; one in a folder of its own is named by its way.
        out: Folder to write to: CASE.nii.gz with the classes of every voxel.
        probabilities: Write CASE_probabilities.nii.gz too: 16-bit integers scaled to [0, 1], one channel a class.
        prototype_map: Write CASE_prototypes.nii.gz too: the class of the nearest prototype.
        winners: Write CASE_winners.nii.gz too: 1 + class * K + index of the nearest prototype.
        largest_component: Keep only the largest piece of every structure; as in training if absent.
        batch_size: Windows the network sees at once; more are faster on a GPU or with small patches, and take memory.
        device: cpu, cuda, or auto.
        overwrite: Replace existing files.
    """
    require(1 <= batch_size <= 65536, "--batch-size", batch_size, "1 to 65536 windows")
    segmenter, paths = Segmenter.load(run, device), find_volumes(volumes)
    if largest_component is not None:
        segmenter.plan = dataclasses.replace(segmenter.plan, largest_component=largest_component)
    kinds = {"_probabilities": probabilities, "_prototypes": prototype_map, "_winners": winners}
    extras = [kind for kind, wanted in kinds.items() if wanted]
    failures = segment_files(segmenter, paths, out, extras=extras, batch=batch_size, overwrite=overwrite)
    print(f"{len(paths) - len(failures)} of {len(paths)} volumes segmented, in {out}")
    for path, failure in failures.items():
        print(f"failed: {path}: {reason(failure)}", file=sys.stderr)
    return 1 if failures else 0


def prototypes(
    run: Path,
    volume: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """What each prototype stands for in one volume.

    Args:
        run: Run folder of `train`.
        volume: NIfTI or HDF5 file, or DICOM series.
        out: NIfTI to write: 1 + class * K + index of the nearest prototype of every voxel.
        device: cpu, cuda, or auto.
        overwrite: Replace an existing file.
        json: Print JSON instead of a table.
    """
    if out is not None:
        refuse_existing(out, overwrite)
        if not is_nifti(out):
            raise InputError("the map is written as NIfTI", where=out, remedy="end the name in .nii.gz")
    segmenter, image = Segmenter.load(run, device), read_image(volume)
    winners = np.asarray(segmenter.segment(image, prototypes=True).winners)
    if out is not None:
        write_nifti(out, winners, image)
    print_rows(prototype_rows(segmenter.prototypes, winners, segmenter.plan.classes), json=json)


def compare(
    results: Annotated[tuple[Path, ...], Parameter(negative=())], *, metric: str = "dice", json: bool = False
) -> None:
    """Paired Wilcoxon signed-rank tests between evaluated runs, over the cases they share.

    Args:
        results: Run folders that `evaluate` was run on, or JSON files it printed; two or more.
        metric: Metric compared, averaged over the structures of a case.
        json: Print JSON instead of a table.
    """
    print_rows(compare_runs(results, metric), json=json)


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "MPCL: multiple prototype contrastive learning for semi-supervised 3-D segmentation.\n"
        "  Y. Liu et al., Embracing Intra-Class Heterogeneity for Semi-Supervised Medical Image Segmentation: From\n"
        "  Diversity to Precision, arXiv 2607.02051, 2026; code github.com/rhodaliu17/MPCL\n"
        "Claim: several prototypes a class, found from its intensity histogram, segment better than one when few\n"
        "scans are labelled; measure it with `cl-bench claims mpcl`, and on your data with --method and `compare`.\n"
        "Note: under the published assignment (--preset paper-code) all prototypes of a class move to its mean; the\n"
        "corrected preset keeps them apart. Baselines in the same package: upcol, ua-mt, mean-teacher, sup."
    )
