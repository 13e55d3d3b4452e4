"""The trained encoder: images in, features, factors and uncertainties out."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError, require
from contrastive_core.evaluation import fit_probe
from contrastive_core.training import seeded_generator
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from cl_foundations.cfa.model import FactorModel, ModelConfig
from cl_foundations.cfa.posterior import GAMMA_1_1, GammaPrior
from cl_foundations.cfa.uncertainty import uncertainty
from cl_foundations.images.arrays import image_set
from cl_foundations.images.sets import ImageSet

KIND = "cfa-model"
Change = Callable[[Float[Tensor, "b 3 h w"], torch.Generator], Float[Tensor, "b 3 h w"]]


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """How images are embedded.

    Attributes:
        draws: Posterior draws of the score var_dir.
        seed: Seed of the draws, of corruptions and of probes.
        images_at_once: Images that go through the network together.
        workers: Processes that read images, for sets too large for memory.
    """

    draws: int = 8
    seed: int = 0
    images_at_once: int = 256
    workers: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.draws <= 10_000, "--draws", self.draws, "a whole number from 1 to 10,000")
        require(0 <= self.seed < 2**32, "--seed", self.seed, f"a whole number from 0 to {2**32 - 1}")
        option = "--images-at-once"
        require(1 <= self.images_at_once <= 1 << 24, option, self.images_at_once, "a positive whole number")
        require(0 <= self.workers <= 4096, "--workers", self.workers, "a whole number from 0 to 4096")


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a model says about a set of images.

    Attributes:
        features: Backbone features ``[n d]``.
        mean: Means of the factors ``[n k]``.
        variance: Their variances ``[n k]``.
        scores: Uncertainty scores by name, ``[n]`` each, higher where the model is less certain.
        labels: Class indices, or ``None``.
        ids: Names of the images.
        classes: Names of the classes.
    """

    features: Float[np.ndarray, "n d"]
    mean: Float[np.ndarray, "n k"]
    variance: Float[np.ndarray, "n k"]
    scores: Mapping[str, Float[np.ndarray, " n"]]
    labels: Int[np.ndarray, " n"] | None
    ids: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def known(self) -> Int[np.ndarray, " n"]:
        """The labels of images that have some.

        Raises:
            InputError: They have none.
        """
        if self.labels is None:
            raise InputError("the images have no labels", remedy="sort them into one folder a class")
        return self.labels

    def save(self, path: Path) -> None:
        """Write ``.npz``: feats, mean, var, an array a score, paths, and labels and classes where there are any."""
        arrays: dict[str, Any] = {"feats": self.features, "mean": self.mean, "var": self.variance, **self.scores}
        arrays["paths"] = np.array(self.ids)
        if self.labels is not None:
            arrays |= {"labels": self.labels, "classes": np.array(self.classes)}
        np.savez(path, **arrays)


class FactorEncoder:
    """A trained model and what it says about images.

    Args:
        model: Backbone and head; put into eval mode.
        prior: Prior that the score ``kl`` is measured from.
        device: Where it runs: ``auto``, ``cpu``, ``cuda``, ...
    """

    def __init__(self, model: FactorModel, prior: GammaPrior = GAMMA_1_1, *, device: str = "auto") -> None:
        self.device = torch.device(pick_device(device))
        self.model, self.prior = model.to(self.device).eval(), prior

    @property
    def config(self) -> ModelConfig:
        """The network, and what its embedding is."""
        return self.model.config

    @torch.no_grad()
    def embed(
        self,
        images: ImageSet | Shaped[np.ndarray, "n h w *c"],
        settings: EmbedSettings = EmbedSettings(),
        *,
        change: Change | None = None,
    ) -> Embeddings:
        """Features, factors and uncertainties, without augmentation.

        Args:
            images: A set, or an array ``[n h w]`` or ``[n h w c]`` of 8 or 16 bits; resized to the model's input.
            settings: Draws and batches.
            change: Applied to every batch first, for instance a corruption.

        Raises:
            InputError: The array has another layout or type.
        """
        data = images if isinstance(images, ImageSet) else image_set(images)
        data = data.resized(self.config.image_size)
        parts: dict[str, list[Tensor]] = {}
        for number, (pixels, _) in enumerate(data.batches(settings.images_at_once, settings.workers)):
            generator = seeded_generator(settings.seed, number)
            x = pixels.to(self.device).float() / 255
            h = self.model.features(x if change is None else change(x, generator))
            posterior = self.model.posterior(h)
            scores = uncertainty(posterior, prior=self.prior, draws=settings.draws, generator=generator)
            batch = {"features": h.float(), "mean": posterior.mean(), "variance": posterior.variance()}
            for name, value in (batch | scores).items():
                parts.setdefault(name, []).append(value.cpu())
        arrays = {name: torch.cat(values).numpy() for name, values in parts.items()}
        features, mean, variance = (arrays.pop(name) for name in ("features", "mean", "variance"))
        return Embeddings(features, mean, variance, arrays, data.labels, data.ids, data.classes)

    def classifier(self, images: ImageSet, settings: EmbedSettings = EmbedSettings()) -> "FactorClassifier":
        """A logistic regression on the features of labelled images.

        Raises:
            InputError: The images have no labels of two classes.
        """
        labels = images.labelled("fitting a probe")
        probe = fit_probe(self.embed(images, settings).features, labels, kind="logreg", seed=settings.seed)
        return FactorClassifier(self, probe, images.classes)

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write the weights and what they are."""
        description = {"config": dataclasses.asdict(self.config), "prior": dataclasses.asdict(self.prior)}
        save_weights(folder, self.model.state_dict(), {"kind": KIND, **description})

    @classmethod
    def load(cls, folder: Path | str | os.PathLike[str], *, device: str = "auto") -> "FactorEncoder":
        """Read what :meth:`save` wrote, a run folder for instance.

        Raises:
            InputError: There is no such folder or device, or the folder holds something else.
        """
        device = pick_device(device)

        def build(state: dict[str, Any], description: dict[str, Any]) -> FactorEncoder:
            config, prior = ModelConfig(**description["config"]), GammaPrior(**description["prior"])
            # Before a network of that size is made.
            if len(state["trunk.0.weight"]) != config.hidden:
                raise ValueError(f"the head's hidden layer has {len(state['trunk.0.weight'])} units")
            if config.factors not in {len(value) for name, value in state.items() if name.startswith("head.")}:
                raise ValueError("the head has another number of factors")
            model = FactorModel(config)
            model.load_state_dict(state)
            return cls(model, prior, device=device)

        return load_model(folder, KIND, build, made_by="cl-foundations cfa train")


@dataclasses.dataclass(frozen=True)
class FactorClassifier:
    """A probe on the features of an encoder.

    Attributes:
        encoder: The encoder.
        probe: Gives probabilities of features.
        classes: Names of the classes.
    """

    encoder: FactorEncoder
    probe: Any
    classes: tuple[str, ...]

    def predict(
        self, images: ImageSet | Shaped[np.ndarray, "n h w *c"], settings: EmbedSettings = EmbedSettings()
    ) -> list[dict[str, Any]]:
        """A row an image: ``path``, ``class``, ``probability``, and one column an uncertainty score."""
        embeddings = self.encoder.embed(images, settings)
        probabilities = self.probe.predict_proba(embeddings.features)
        best = probabilities.argmax(1)
        return [
            {
                "path": name,
                "class": self.classes[int(self.probe.classes_[best[i]])],
                "probability": round(float(probabilities[i, best[i]]), 6),
                **{score: float(f"{values[i]:.6g}") for score, values in embeddings.scores.items()},
            }
            for i, name in enumerate(embeddings.ids)
        ]
