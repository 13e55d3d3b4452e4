"""The verbs of ``cl-retrieval gnah``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from contrastive_core.cli import Flat, options_of
from contrastive_core.files import refuse_filled, write_json
from contrastive_core.tables import print_rows
from contrastive_core.training import RunFolder

from cl_retrieval.gnah.inference import GNAHEncoder
from cl_retrieval.gnah.system import Settings
from cl_retrieval.gnah.training import train_gnah
from cl_retrieval.hashing.commands import HashCommands, Source
from cl_retrieval.hashing.data import FeatureOptions, training_features
from cl_retrieval.hashing.evaluation import evaluate_if_labelled
from cl_retrieval.hashing.report import training_report
from cl_retrieval.hashing.split import SplitOptions
from cl_retrieval.hashing.training import tune as tune_pairs
from cl_retrieval.pairs.features import PairFeatures

_verbs = HashCommands(GNAHEncoder)
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
    """Learn hash functions of images and texts from a few pairs; labels are for the evaluation alone.

    Args:
        data: Feature file (.npz, .npy, .mat, .h5), or pairs as for prepare.
        out: Run folder.
        source: Encoder.
        splitting: Training pairs and queries.
        settings: Hash functions, objective, length.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        features = training_features(data, source)
        split = splitting.draw(features)
        hashes = train_gnah(split.training(features, data), settings, run)
        hashes.save(run)
        split.write(run)
        results = evaluate_if_labelled(hashes, features, split, where=data)
        run.write_results(results)
        training_report(run, hashes, features, split, results, where=data).write(run.report)
    print(f"model in {out}, report in {run.report}")


def tune(
    data: Path,
    *,
    source: Source = FeatureOptions(),
    splitting: Annotated[SplitOptions, Flat] = SplitOptions(),
    settings: Annotated[Settings, Flat] = Settings(),
    betas: tuple[float, ...] = (0.25, 0.5),
    gammas: tuple[float, ...] = (0.01, 0.03),
    temperatures: tuple[float, ...] = (0.2, 0.5),
    binarisation_weights: tuple[float, ...] = (0.1,),
    ks: tuple[int, ...] = (),
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
        betas: First weights of the prototype alignment; like the others, given once a value.
        gammas: Its decays.
        temperatures: Temperatures.
        binarisation_weights: Weights of the binarisation.
        ks: Numbers of prototypes; the elbow's without.
        out: Folder for tune.json.
        json: Print JSON instead of a table.
        overwrite: Replace old results in that folder.
    """
    refuse_filled(out, overwrite)
    grid = {"beta": betas, "gamma": gammas, "temperature": temperatures, "binarisation_weight": binarisation_weights}
    features = training_features(data, source)

    def trained(setting: Mapping[str, Any], pairs: PairFeatures) -> GNAHEncoder:
        objective = dataclasses.replace(settings.objective, **setting)
        return train_gnah(pairs, dataclasses.replace(settings, objective=objective))

    outcome = tune_pairs(features, splitting.draw(features), grid | ({"k": ks} if ks else {}), trained, where=data)
    if out is not None:
        write_json(out / "tune.json", outcome)
    print_rows(outcome["results"], json=json)


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "GNAH: unsupervised data-efficient cross-modal retrieval with global-neighborhood alignment hashing.\n"
        "  R. Li, X. Ma, Z. Weng, Y. Zhang, G. Luo, H. Zhuang, Z. Lin, Y.-P. Tan, arXiv 2606.31517\n"
        "Claim: from 20 to 160 unlabelled image-text pairs, prototypes and neighbourhoods give better binary codes\n"
        "than contrasting the pairs themselves. Measure it with `cl-bench claims gnah`."
    )
