"""The verbs of ``cl-retrieval gnah``; the same functions are the Python interface."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
from contrastive_core.training import RunFolder
from cyclopts import Parameter
from jaxtyping import Float
from torch import Tensor

from cl_retrieval import tasks
from cl_retrieval.gnah.learner import GNAHLearner, GNAHSettings
from cl_retrieval.gnah.model import GNAH, GNAHConfig, save_model
from cl_retrieval.hasher import training_features
from cl_retrieval.hashing.learning import optimise
from cl_retrieval.hashing.settings import PairTraining
from cl_retrieval.hashing.split import places
from cl_retrieval.hashing.system import train_learner
from cl_retrieval.tasks import DataOptions, SplitOptions

Flat = Parameter(name="*")


def train_model(
    data: Path,
    out: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    model: Annotated[GNAHConfig, Flat] = GNAHConfig(),
    objective: Annotated[GNAHSettings, Flat] = GNAHSettings(),
    batch_size: int = 100,
    train: Annotated[PairTraining, Flat] = PairTraining(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn hash functions of images and texts from a few pairs; labels are for the evaluation alone.

    Args:
        data: Feature file (.npz, .npy, .mat, .h5), or pairs as for encode-features.
        out: Run folder.
        source: Encoder.
        split: Training pairs and queries.
        model: Hash functions.
        objective: Objective and learning rate.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    division = tasks.split_of(features, split)
    rows = places(features, division.train, data)
    fx, fy = torch.from_numpy(features.image[rows]), torch.from_numpy(features.text[rows])
    config: dict[str, Any] = {
        "command": "gnah train",
        "data": str(data),
        **dataclasses.asdict(source),
        **dataclasses.asdict(split),
        **dataclasses.asdict(model),
        **dataclasses.asdict(objective),
        "batch_size": batch_size,
        **dataclasses.asdict(train),
    }
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        learner = new_learner(fx, fy, model, objective, epochs=train.epochs, seed=train.seed)
        train_learner(learner, fx, fy, run=run, batch_size=batch_size, settings=train)
        origin = {
            "encoder": features.encoder,
            "encoder_fingerprint": features.fingerprint,
            "encoder_source": features.source,
        }
        save_model(learner.model, run, origin)
        facts = {
            "prototypes": len(learner.prototypes),
            "purity of prototypes by modality": f"{learner.purity:.2f}",
            "distinct anchors": learner.distinct_anchors(),
            "variant": objective.variant,
        }
        tasks.finish_training(run, learner.model, features, division, method="GNAH", facts=facts, where=data)
    print(f"model in {out}, report in {out / 'report.html'}")


def new_learner(
    fx: Float[Tensor, "n d"],
    fy: Float[Tensor, "n d"],
    model: GNAHConfig = GNAHConfig(),
    objective: GNAHSettings = GNAHSettings(),
    *,
    epochs: int = 500,
    seed: int = 42,
) -> GNAHLearner:
    """A learner with fresh hash functions, for :func:`cl_retrieval.hashing.learning.optimise` or :func:`train_learner`.

    Args:
        fx: Unit features of the training images.
        fy: Unit features of their texts.
        model: Hash functions.
        objective: Objective.
        epochs: Length of the training.
        seed: Seed of weights, prototypes and anchors.
    """
    torch.manual_seed(seed)
    return GNAHLearner(GNAH(fx.shape[1], model), fx, fy, objective, epochs=epochs, seed=seed)


def tune(
    data: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    model: Annotated[GNAHConfig, Flat] = GNAHConfig(),
    betas: tuple[float, ...] = (0.25, 0.5),
    gammas: tuple[float, ...] = (0.01, 0.03),
    temperatures: tuple[float, ...] = (0.2, 0.5),
    binarisation_weights: tuple[float, ...] = (0.1,),
    ks: tuple[int, ...] = (),
    epochs: int = 500,
    batch_size: int = 100,
    seed: int = 42,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Rank settings by how well held-out pairs find each other; needs no labels.

    Args:
        data: Pairs or features.
        source: Encoder.
        split: Training pairs, a fifth of which is held out.
        model: Hash functions.
        betas: First weights of the prototype alignment; like the others, given once a value.
        gammas: Its decays.
        temperatures: Temperatures.
        binarisation_weights: Weights of the binarisation.
        ks: Numbers of prototypes; the elbow's without.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        seed: Seed of weights and order.
        out: Folder for tune.json.
        json: Print JSON instead of a table.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    grid: dict[str, tuple[float | int, ...]] = {
        "beta": betas,
        "gamma": gammas,
        "temperature": temperatures,
        "binarisation_weight": binarisation_weights,
    }
    if ks:
        grid["k"] = ks

    def trained(setting: dict[str, Any], image: Any, text: Any) -> GNAH:
        fx, fy = torch.from_numpy(image), torch.from_numpy(text)
        learner = new_learner(fx, fy, model, GNAHSettings(**setting), epochs=epochs, seed=seed)
        optimise(learner, fx, fy, epochs=epochs, batch_size=batch_size, seed=seed)
        return learner.model

    tasks.tune(features, tasks.split_of(features, split), grid, trained, out=out, json=json, where=data)


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "GNAH: unsupervised data-efficient cross-modal retrieval with global-neighborhood alignment hashing.\n"
        "  R. Li, X. Ma, Z. Weng, Y. Zhang, G. Luo, H. Zhuang, Z. Lin, Y.-P. Tan, arXiv 2606.31517\n"
        "Claim: from 20 to 160 unlabelled image-text pairs, prototypes and neighbourhoods give better binary codes\n"
        "than contrasting the pairs themselves. Measure it with `cl-bench claims gnah`."
    )
