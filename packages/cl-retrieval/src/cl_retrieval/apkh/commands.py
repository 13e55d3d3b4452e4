"""The verbs of ``cl-retrieval apkh``."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from contrastive_core.cli import Flat, options_of
from contrastive_core.files import json_text, refuse_filled, write_json
from contrastive_core.tables import print_rows
from contrastive_core.training import RunFolder
from cyclopts import Parameter

from cl_retrieval.apkh.attributes import TEMPLATE, read_bank
from cl_retrieval.apkh.bank import check_bank, first_centres, report_overlap
from cl_retrieval.apkh.explain import explain_items, explanation_lines
from cl_retrieval.apkh.inference import APKHEncoder
from cl_retrieval.apkh.system import Settings
from cl_retrieval.apkh.training import train_apkh
from cl_retrieval.hashing.commands import HashCommands, Source
from cl_retrieval.hashing.data import FeatureOptions, queries_of, training_features
from cl_retrieval.hashing.evaluation import evaluate_if_labelled
from cl_retrieval.hashing.report import training_report
from cl_retrieval.hashing.split import SplitOptions
from cl_retrieval.hashing.training import tune as tune_pairs
from cl_retrieval.pairs.features import PairFeatures

_verbs = HashCommands(APKHEncoder)
embed, evaluate, search = _verbs.embed, _verbs.evaluate, _verbs.search
index_build, index_add = _verbs.index_build, _verbs.index_add


def train(
    data: Path,
    out: Path,
    *,
    source: Source = FeatureOptions(),
    splitting: Annotated[SplitOptions, Flat] = SplitOptions(),
    settings: Annotated[Settings, Flat] = Settings(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn hash functions over attributes from a few pairs; labels are for the evaluation alone.

    Args:
        data: Feature file (.npz, .npy, .mat, .h5), or pairs as for prepare. The attributes are texts, so a feature file
            needs the encoder it was made with, or the attributes' own features.
        out: Run folder.
        source: Encoder.
        splitting: Training pairs and queries.
        settings: Attributes, kernels and head, objective, length.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        features = training_features(data, source)
        split = splitting.draw(features)
        bank = read_bank(settings.prompts.attributes, settings.prompts.template)
        leaked = report_overlap(bank, features, strict=settings.prompts.strict_zero_shot)
        hashes = train_apkh(split.training(features, data), settings, run, bank=bank, device=source.device)
        hashes.save(run)
        split.write(run)
        results = evaluate_if_labelled(hashes, features, split, where=data)
        run.write_results(results)
        report = training_report(run, hashes, features, split, results, where=data)
        report.facts({"attributes that name classes": ", ".join(leaked) or "none"})
        report.write(run.report)
    print(f"model in {out}, report in {run.report}")


def tune(
    data: Path,
    *,
    source: Source = FeatureOptions(),
    splitting: Annotated[SplitOptions, Flat] = SplitOptions(),
    settings: Annotated[Settings, Flat] = Settings(),
    variances: tuple[float, ...] = (0.03, 0.05, 0.1),
    temperatures: tuple[float, ...] = (0.2, 0.5),
    align_weights: tuple[float, ...] = (0.5,),
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Rank settings by how well held-out pairs find each other; needs no labels.

    Args:
        data: Pairs or features.
        source: Encoder.
        splitting: Training pairs, a fifth of which is held out.
        settings: What all have in common.
        variances: Widths of the kernels; like the others, given once a value.
        temperatures: Temperatures of the contrast.
        align_weights: Weights of the alignment of the views.
        out: Folder for tune.json.
        json: Print JSON instead of a table.
        overwrite: Replace old results in that folder.
    """
    refuse_filled(out, overwrite)
    features = training_features(data, source)
    bank = read_bank(settings.prompts.attributes, settings.prompts.template)
    start = first_centres(bank, features, settings.prompts, device=source.device)

    def trained(setting: Mapping[str, Any], pairs: PairFeatures) -> APKHEncoder:
        prompts = dataclasses.replace(settings.prompts, variance=setting["variance"])
        weights = {name: value for name, value in setting.items() if name != "variance"}
        objective = dataclasses.replace(settings.objective, **weights)
        changed = dataclasses.replace(settings, prompts=prompts, objective=objective)
        return train_apkh(pairs, changed, bank=bank, centres=copy.deepcopy(start))

    grid = {"variance": variances, "temperature": temperatures, "align_weight": align_weights}
    outcome = tune_pairs(features, splitting.draw(features), grid, trained, where=data)
    if out is not None:
        write_json(out / "tune.json", outcome)
    print_rows(outcome["results"], json=json)


def explain(
    run: Path,
    *,
    text: tuple[str, ...] = (),
    image: tuple[Path, ...] = (),
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    source: Source = FeatureOptions(),
    json: bool = False,
) -> None:
    """The attributes an image or a text excites most, and those that two of them share.

    Args:
        run: Run folder of train.
        text: Texts; may be given several times.
        image: Image files; may be given several times.
        k: Attributes shown.
        source: Encoder.
        json: Print JSON instead of lines.
    """
    encoder = APKHEncoder.load(run, device=source.device)
    explanation = explain_items(encoder, queries_of(encoder, text=text, image=image, options=source), k)
    print(json_text(explanation) if json else "\n".join(explanation_lines(explanation)))


def attributes_check(
    file: Path | None = None,
    *,
    template: str = TEMPLATE,
    data: Path | None = None,
    variance: float | Literal["auto"] = 0.05,
    source: Source = FeatureOptions(),
    json: bool = False,
) -> None:
    """Check a bank of attributes: lines, lengths, overlap with labels, and how many of them an image excites.

    Args:
        file: Text, one phrase a line, or VAW's attribute_index.json; the package's own bank without.
        template: Sentence the phrases are put into, with {a}.
        data: Pairs or features whose labels must not be attributes, and whose images excite them.
        variance: Width of the kernels.
        source: Encoder.
        json: Print JSON instead of lines.
    """
    checked = check_bank(read_bank(file, template), data, variance=variance, options=source)
    print(json_text(checked) if json else "\n".join(f"{name:<24}{value}" for name, value in checked.items()))


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "APKH: attribute-prompted kernel hashing for unsupervised data-efficient cross-modal retrieval.\n"
        "  R. Li, X. Ma, Z. Weng, Y. Zhang, G. Luo, H. Zhuang, Z. Lin, Y.-P. Tan, arXiv 2607.00379\n"
        "Claim: hash functions of attribute activations carry over to categories that never occurred among the few\n"
        "training pairs. Measure it with `cl-bench claims apkh`.\n"
        "Note: the equations are a reconstruction from the paper's abstract and its sibling GNAH; see the README."
    )
