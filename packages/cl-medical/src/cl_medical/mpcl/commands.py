"""The verbs of ``cl-medical mpcl``; the same functions are the Python interface."""

import csv
import dataclasses
import itertools
import json as json_format
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json
from contrastive_core.report import Report
from contrastive_core.training import RunFolder, TrainSettings
from cyclopts import Parameter
from monai.data.meta_tensor import MetaTensor

from cl_medical.mpcl.data import DataOptions, DataPlan, foreground_crop
from cl_medical.mpcl.ihpg import Prototypes, spread
from cl_medical.mpcl.model import NetworkConfig
from cl_medical.mpcl.pictures import histogram_figure, slices_figure
from cl_medical.mpcl.predict import Segmentation, Segmenter
from cl_medical.mpcl.system import Method, MethodOptions, OptimSettings, Preset, resolve_method
from cl_medical.mpcl.training import Select, StepSettings, evaluate_cases, load_split, tracked, train_volumes
from cl_medical.volumes.cases import CaseSet, Split, find_volumes, make_split, read_cases
from cl_medical.volumes.metrics import summarise
from cl_medical.volumes.prepare import Task, prepare_cases
from cl_medical.volumes.reading import case_name, read_image, spacing, write_nifti
from cl_medical.volumes.samples import write_samples

Flat = Parameter(name="*")
Part = Literal["test", "validation", "all"]
_SHOWN = ("dice", "jaccard", "hd95_vox", "hd95_mm", "asd_directed_mm", "assd_mm", "prototype_dice", "prototype_ce")


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
    labelled: int = 4,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> None:
    """Raw NIfTI or DICOM scans into cases, split lists and dataset.json.

    Args:
        raw: Folder with images/ and labels/ (equal names); an image is a NIfTI file or a folder with a DICOM series.
        out: New folder.
        task: Preset of the published data sets: la, pancreas, brats; or general, which only reorders to RAS.
        merge_labels: Take all structures as one; the published tasks do.
        labelled: Labelled training cases; further ones train as unlabelled.
        validation: Validation cases; a tenth of the labelled ones if absent.
        test: Test cases; a fifth of the labelled ones if absent.
        seed: Seed of the split.
    """
    data, split = prepare_cases(
        raw, out, task=task, merge=merge_labels, labelled=labelled, validation=validation, test=test, seed=seed
    )
    parts = {name: len(names) for name, names in dataclasses.asdict(split).items()}
    print(f"{len(data.cases)} cases in {out}: " + ", ".join(f"{count} {name}" for name, count in parts.items()))


def train(
    data: Path,
    out: Path,
    *,
    method: Method = "mpcl",
    preset: Preset = "corrected",
    labelled: int = 4,
    validation: int | None = None,
    test: int | None = None,
    split_seed: int = 0,
    select: Select = "validation",
    options: Annotated[MethodOptions, Flat] = MethodOptions(),
    volumes: Annotated[DataOptions, Flat] = DataOptions(),
    steps: Annotated[StepSettings, Flat] = StepSettings(),
    network: NetworkConfig = NetworkConfig(),
    optim: OptimSettings = OptimSettings(),
    train: Annotated[TrainSettings, Flat] = TrainSettings(epochs=400),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train MPCL or a baseline on a few labelled and many unlabelled volumes.

    Args:
        data: Folder of cases; images without a label map are unlabelled.
        out: Run folder.
        method: mpcl, upcol (one prototype, no contrast), mean-teacher, ua-mt, or sup (labelled cases only).
        preset: corrected, or paper-code with every behaviour of the published code.
        labelled: Labelled cases to train with; the others train as unlabelled.
        validation: Cases that choose the checkpoint. If absent: those of val.txt; without split lists a tenth of the
            labelled ones.
        test: Cases held out. If absent: those of test.txt; without split lists a fifth of the labelled ones.
        split_seed: Seed of the split, where the folder has no split lists.
        select: Keep the weights best on validation cases, the last, or (as published) the best on test cases.
        options: Choices of the method that win over the preset.
        volumes: How volumes are read.
        steps: Batches.
        network: Architecture.
        optim: Optimiser.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    cases = read_cases(data)
    plan = DataPlan.resolve(volumes, cases, network.divisor)
    settings = resolve_method(method, preset, options)
    split = make_split(cases, labelled=labelled, validation=validation, test=test, seed=split_seed)
    if steps.unlabelled_crop is None:
        steps = dataclasses.replace(steps, unlabelled_crop="centre" if preset == "paper-code" else "random")
    config: dict[str, Any] = {
        "command": "train",
        "folder": str(data),
        "preset": preset,
        "select": select,
        "method": dataclasses.asdict(settings),
        "split": dataclasses.asdict(split),
        "data": plan.to_dict(),
        "steps_of": dataclasses.asdict(steps),
        "network": dataclasses.asdict(network),
        "optim": dataclasses.asdict(optim),
        **dataclasses.asdict(train),
    }
    if (out / "config.yaml").is_file() and not (resume or overwrite):
        RunFolder.create(out, config)  # refuses, before minutes go into reading
    # All volumes are read before the folder is made: a bad case leaves nothing behind.
    parts = load_split(cases, split, plan, settings, select=select, cache=steps.cache)
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        segmenter = train_volumes(
            *parts, plan, run=run, network=network, method=settings, steps=steps, optim=optim, train=train
        )
        segmenter.save(run, {"method": method, "preset": preset})
        judged = split.validation or split.labelled
        rows = evaluate_cases(segmenter, [cases.cases[name] for name in judged])
        spreads = dict(zip(plan.classes, spread(segmenter.prototypes.centers).tolist(), strict=True))
        results = {
            "method": method,
            "preset": preset,
            "prototype_spread": spreads,
            "evaluation": {"validation" if split.validation else "labelled": _evaluation(rows)},
        }
        run.write_results(results)
        _train_report(run, segmenter, cases, split, rows, results, select).write(run.path / "report.html")
    where = "validation" if split.validation else "its own training"
    print(f"mean Dice {summarise(rows)['dice']['mean']:.3f} on {len(judged)} {where} cases")
    print(f"segmenter in {out}, report in {out / 'report.html'}")


def evaluate(
    run: Path,
    data: Path,
    *,
    part: Part = "test",
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
        part: Which cases: test or validation of the run's split, or all labelled ones of the folder.
        device: cpu, cuda, or auto.
        out: CSV to write as well, one row a case and structure.
        overwrite: Replace an existing CSV.
        json: Print JSON instead of a table.
    """
    if out is not None:
        _refuse_existing(out, overwrite)
    segmenter, cases = Segmenter.load(run, device), read_cases(data)
    names = _part(RunFolder(run), cases, part)
    rows = evaluate_cases(segmenter, [cases.cases[name] for name in names], progress=True)
    evaluation = _evaluation(rows)
    folder = RunFolder.open(run)
    results = folder.results()
    results.setdefault("evaluation", {})[part] = evaluation
    folder.write_results(results)
    if out is not None:
        with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if json:
        print(json_format.dumps({"run": str(run), "part": part, **evaluation}, indent=2))
        return
    print(_table(["case", "class", *(name for name in _SHOWN if name in rows[0])], rows))
    empty = sum(row["empty"] for row in rows)
    if empty:
        print(f"{empty} of {len(rows)} structures are empty in prediction or reference")
    print(_table(["metric", "mean", "sd"], [{"metric": n, **v} for n, v in evaluation["summary"].items()]))


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
        volumes: NIfTI or HDF5 file, DICOM series, or folder of them.
        out: Folder to write to: CASE.nii.gz with the classes of every voxel.
        probabilities: Write CASE_probabilities.nii.gz too: 16-bit integers scaled to [0, 1], one channel a class.
        prototype_map: Write CASE_prototypes.nii.gz too: the class of the nearest prototype.
        winners: Write CASE_winners.nii.gz too: 1 + class * K + index of the nearest prototype.
        largest_component: Keep only the largest piece of every structure; as in training if absent.
        batch_size: Windows the network sees at once; more are faster on a GPU or with small patches, and take memory.
        device: cpu, cuda, or auto.
        overwrite: Replace existing files.
    """
    if batch_size < 1:
        raise InputError("the network sees at least one window", where="--batch-size", why=f"got {batch_size}")
    segmenter = Segmenter.load(run, device)
    if largest_component is not None:
        segmenter.plan = dataclasses.replace(segmenter.plan, largest_component=largest_component)
    paths = find_volumes([volumes])
    kinds = {"_probabilities": probabilities, "_prototypes": prototype_map, "_winners": winners}
    endings = ["", *(ending for ending, wanted in kinds.items() if wanted)]
    _check_outputs(paths, out, endings, overwrite)
    failures: list[tuple[Path, Exception]] = []
    for path in tracked(paths, "segmenting", True):
        try:
            image = read_image(path)
            found = segmenter.segment(
                image, probabilities=probabilities, prototypes=prototype_map or winners, batch=batch_size
            )
            _write(found, image, out, case_name(path), endings)
        except (InputError, OSError, MemoryError, RuntimeError) as error:  # torch runs out of memory as RuntimeError
            if len(paths) == 1:
                raise
            failures.append((path, error))
            continue
        if not sys.stderr.isatty():
            print(f"{case_name(path)}: " + _shares(found, segmenter.plan.classes), file=sys.stderr)
    print(f"{len(paths) - len(failures)} of {len(paths)} volumes segmented, in {out}")
    for path, failure in failures:
        print(f"failed: {path}: {_reason(failure)}", file=sys.stderr)
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
        _refuse_existing(out, overwrite)
        if not out.name.endswith((".nii", ".nii.gz")):
            raise InputError("the map is written as NIfTI", where=out, remedy="end the name in .nii.gz")
    segmenter = Segmenter.load(run, device)
    image = read_image(volume)
    found = segmenter.segment(image, prototypes=True)
    assert found.winners is not None
    rows = _prototype_rows(segmenter.prototypes, found.winners, segmenter.plan.classes)
    if out is not None:
        write_nifti(out, found.winners, image)
    print(json_format.dumps(rows, indent=2) if json else _table(list(rows[0]), rows))


def compare(
    results: Annotated[tuple[Path, ...], Parameter(negative=())], *, metric: str = "dice", json: bool = False
) -> None:
    """Paired Wilcoxon signed-rank tests between evaluated runs, over the cases they share.

    Args:
        results: Run folders that `evaluate` was run on, or JSON files it printed; two or more.
        metric: Metric compared, averaged over the structures of a case.
        json: Print JSON instead of a table.
    """
    from scipy.stats import wilcoxon

    if len(results) < 2:
        raise InputError("a comparison needs two results", where="RESULTS", why=f"got {len(results)}")
    scores = {str(path): _case_scores(path, metric) for path in results}
    if len(scores) < 2:
        raise InputError("a result is compared with itself", where=results[0])
    rows = []
    for (a, left), (b, right) in itertools.combinations(scores.items(), 2):
        shared = sorted(set(left) & set(right))
        if not shared:
            raise InputError("two results share no case", where=b, why=f"none of its cases is in {a}")
        x, y = np.array([left[name] for name in shared]), np.array([right[name] for name in shared])
        p = float(wilcoxon(x, y).pvalue) if (x != y).any() else 1.0
        rows.append(
            {
                "a": a,
                "b": b,
                "cases": len(shared),
                "mean a": float(x.mean()),
                "mean b": float(y.mean()),
                "a - b": float((x - y).mean()),
                "p": p,
            }
        )
    print(json_format.dumps(rows, indent=2) if json else _table(list(rows[0]), rows))


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


def _part(run: RunFolder, cases: CaseSet, part: Part) -> list[str]:
    if part == "all":
        names = [case.name for case in cases.cases.values() if case.label is not None]
    else:
        names = list(run.config().get("split", {}).get(part, []))
    missing = [name for name in names if name not in cases.cases]
    if missing:
        raise InputError(
            "a case of the run's split is not in the folder",
            where=cases.folder,
            why=f"{missing[0]} ({len(missing)} of {len(names)})",
            remedy="name the folder the run was trained on, or use --part all",
        )
    if not names:
        raise InputError(
            f"there are no {part} cases" if part != "all" else "the folder holds no labelled case",
            where=cases.folder,
            remedy="use --part all, or train with --test and --validation above 0",
        )
    return names


def _evaluation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    classes = dict.fromkeys(row["class"] for row in rows)
    return {
        "summary": summarise(rows),
        "classes": {name: summarise([row for row in rows if row["class"] == name]) for name in classes},
        "cases": rows,
    }


def _case_scores(path: Path, metric: str) -> dict[str, float]:
    content = RunFolder.open(path).results() if path.is_dir() else read_json(path)
    parts = content.get("evaluation", {}) if isinstance(content, dict) else {}
    found = content if isinstance(content, dict) and "cases" in content else parts.get("test", parts.get("all"))
    if found is None:
        raise InputError(
            "there is no evaluation to compare", where=path, remedy="run `cl-medical mpcl evaluate` on it first"
        )
    scores: dict[str, list[float]] = {}
    for row in found["cases"]:
        if metric not in row or not isinstance(row[metric], int | float):
            known = [name for name, value in row.items() if isinstance(value, float)]
            raise InputError(
                "unknown metric", where="--metric", why=f"got {metric}", remedy=f"one of {', '.join(known)}"
            )
        scores.setdefault(row["case"], []).append(float(row[metric]))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _prototype_rows(known: Prototypes, winners: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    c, k, d = known.centers.shape
    unit = known.centers.reshape(-1, d)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    counts = np.bincount(winners.ravel(), minlength=c * k + 1)[1:]
    names = [f"{classes[i // k]} {i % k + 1}" for i in range(c * k)]
    return [
        {
            "prototype": names[i],
            "map value": i + 1,
            "intensity": float(known.intensity.reshape(-1)[i]),
            "training share": float(known.share.reshape(-1)[i]),
            "share here": float(counts[i] / winners.size),
            "nearest": names[int(cosines[i].argmax())] if c * k > 1 else "-",
            "cosine": float(cosines[i].max()),
        }
        for i in range(c * k)
    ]


def _train_report(
    run: RunFolder,
    segmenter: Segmenter,
    cases: CaseSet,
    split: Split,
    rows: list[dict[str, Any]],
    results: Mapping[str, Any],
    select: Select,
) -> Report:
    plan, k = segmenter.plan, segmenter.prototypes.centers.shape[1]
    report = Report(f"MPCL: {cases.folder.name}, {results['method']} ({results['preset']})")
    parts = {name: len(names) for name, names in dataclasses.asdict(split).items()}
    report.facts(
        {
            "cases": ", ".join(f"{count} {name}" for name, count in parts.items()),
            "classes": ", ".join(plan.classes),
            "patch": " x ".join(str(side) for side in plan.patch),
            "weights kept": {
                "validation": "best on validation cases" if split.validation else "last (no validation cases)",
                "last": "last",
                "test": "BEST ON TEST CASES, as the published code does: test results are optimistic",
            }[select],
            "prototype spread": ", ".join(f"{name} {value:.3g}" for name, value in results["prototype_spread"].items()),
        }
    )
    logged = run.metrics()
    for title, prefix, unit in (
        ("Loss", "loss", "loss"),
        ("Prototype spread", "spread", "mean distance / mean norm"),
        ("Validation", "val_dice", "Dice"),
    ):
        names = [name for name in dict.fromkeys(key for row in logged for key in row) if name.startswith(prefix)]
        lines = {
            _line_name(name, plan.classes): (
                [row["step"] for row in logged if name in row],
                [row[name] for row in logged if name in row],
            )
            for name in names
        }
        if lines:
            report.curve(title, lines, "step", unit)
    judged = list(split.validation or split.labelled)
    kind = "validation" if split.validation else "labelled training"
    shown = ["case", "class", *(name for name in _SHOWN if name in rows[0])]
    report.table(
        f"Results on {kind} cases",
        shown,
        [[row[name] for name in shown] for row in rows],
        note="hd95: 95th percentile of both directed distance sets pooled. An empty prediction has Dice 0 and the "
        "volume's diagonal as distance. prototype_*: the prototype classifier, cross-entropy with cosines times 10.",
    )
    for name in judged[:3]:
        x, y = plan.read(cases.cases[name])
        image, label = plan.preprocessing.image(x), plan.preprocessing.label(y).as_tensor()[0]
        found = segmenter.segment_prepared(image.as_tensor(), prototypes=True)
        report.figure(
            name,
            slices_figure(image.as_tensor(), label, found, k, plan.classes, spacing(image)),
            "Above: contours in the middle slices, reference dashed. Below: the prototype nearest to every voxel.",
        )
    scan, reference = plan.load(cases.cases[split.labelled[0]], labelled=True)
    assert reference is not None
    scan, reference = foreground_crop(scan, reference, plan.patch)
    report.figure(
        f"Intensities of {split.labelled[0]}",
        histogram_figure(scan, reference, segmenter.prototypes, plan.classes),
        "Lines: mean intensity of the voxels a prototype stands for, over all labelled cases.",
    )
    return report


def _line_name(name: str, classes: Sequence[str]) -> str:
    if name.startswith("spread_"):
        return classes[int(name.removeprefix("spread_"))]
    return {"loss": "total", "val_dice": "mean Dice"}.get(name, name.removeprefix("loss_").replace("_", " "))


def _check_outputs(paths: Sequence[Path], out: Path, endings: Sequence[str], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", where=out, remedy="name a folder")
    inputs = {path.resolve() for path in paths}
    seen: dict[Path, Path] = {}
    for path in paths:
        for ending in endings:
            target = out / f"{case_name(path)}{ending}.nii.gz"
            if target in seen:
                raise InputError(
                    "two results have one name", where=path, why=f"{target.name} is also written for {seen[target]}"
                )
            seen[target] = path
            if target.resolve() in inputs:
                raise InputError("the output would replace an input", where=target, remedy="name another folder")
            _refuse_existing(target, overwrite)


def _write(found: Segmentation, image: MetaTensor, out: Path, name: str, endings: Sequence[str]) -> None:
    maps = {"": found.labels, "_prototypes": found.prototype_labels, "_winners": found.winners}
    for ending in endings:
        path, values = out / f"{name}{ending}.nii.gz", maps.get(ending)
        if values is not None:
            write_nifti(path, values, image)
        elif found.probabilities is not None:
            whole = np.moveaxis(np.rint(found.probabilities * 65535).astype(np.uint16), 0, -1)
            write_nifti(path, whole, image, scale=1 / 65535)


def _reason(failure: Exception) -> str:
    if isinstance(failure, InputError):
        return failure.what + (f" ({failure.why})" if failure.why else "")
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


def _shares(found: Segmentation, classes: Sequence[str]) -> str:
    counts = np.bincount(found.labels.ravel(), minlength=len(classes))
    return ", ".join(f"{name} {count} voxels" for name, count in zip(classes[1:], counts[1:].tolist(), strict=True))


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError("the output exists already", where=path, remedy="name another, or pass --overwrite")


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows
    ]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
