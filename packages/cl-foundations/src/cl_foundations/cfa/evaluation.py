"""What features, factors and uncertainties are worth."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from contrastive_core.evaluation import (
    ProbeResult,
    TemperatureScaler,
    expected_calibration_error,
    fit_probe,
    probe,
    retrieval_scores,
)
from jaxtyping import Float, Int

from cl_foundations.cfa.factors import factor_metrics, rank_factors
from cl_foundations.cfa.inference import Embeddings, EmbedSettings, FactorEncoder
from cl_foundations.cfa.robustness import robustness
from cl_foundations.cfa.uncertainty import detection, detections, error_detection
from cl_foundations.images.corruptions import Corruption, corruption, uniform_noise
from cl_foundations.images.reading import held_out
from cl_foundations.images.sets import ImageSet

Protocol = Literal["knn", "linear", "retrieval", "factors", "selection", "uncertainty"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "linear", "retrieval", "factors", "selection", "uncertainty")
_MOST = 2000  # images of each part that the evaluation of a training run looks at
_SEVEREST: tuple[Corruption, ...] = ("noise", "blur", "contrast", "pixelate")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores, and the embeddings and images they were computed from.

    Attributes:
        scores: Plain values, for JSON.
        train: Embeddings that probes are fitted on.
        test: Embeddings they are applied to.
        images: The test images.
        seed: Seed of the probe.
        outside: Embeddings of other images by name.
    """

    scores: dict[str, Any]
    train: Embeddings
    test: Embeddings
    images: ImageSet
    outside: Mapping[str, Embeddings]
    seed: int = 0

    @functools.cached_property
    def probe(self) -> ProbeResult | None:
        """A linear probe on the factor means, where there are labels of two classes."""
        if self.train.labels is None or self.test.labels is None or len(np.unique(self.train.labels)) < 2:
            return None
        return linear_probe(self.train.mean, self.train.labels, self.test.mean, self.test.labels, seed=self.seed)


def evaluate(
    encoder: FactorEncoder,
    train: ImageSet,
    test: ImageSet,
    settings: EmbedSettings = EmbedSettings(),
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    outside: Mapping[str, ImageSet] | None = None,
    corruptions: bool = False,
) -> Evaluation:
    """Probes, retrieval, factor metrics, calibration and uncertainty on labelled images.

    Args:
        encoder: The encoder.
        train: Labelled images for probes.
        test: Labelled images they are applied to.
        settings: Draws, seed, batches.
        protocols: As :func:`evaluate_embeddings`.
        outside: Images out of the distribution, by name.
        corruptions: Also apply the probes to corrupted test images (:func:`robustness`).

    Raises:
        InputError: A part has no labels of two classes.
    """
    for part in (train, test):
        part.labelled("evaluation")
    known, shown = (encoder.embed(part, settings) for part in (train, test))
    others = {name: encoder.embed(images, settings) for name, images in (outside or {}).items()}
    scores: dict[str, Any] = {"train_images": len(train), "test_images": len(test)}
    scores |= evaluate_embeddings(known, shown, protocols=protocols, seed=settings.seed)
    if others:
        scores["ood"] = detections(shown.scores, {name: each.scores for name, each in others.items()})
    if corruptions:
        scores["robustness"] = robustness(encoder, known, shown, test, settings)
    return Evaluation(scores, known, shown, test, others, settings.seed)


def evaluate_training(encoder: FactorEncoder, images: ImageSet, test: ImageSet | None, *, seed: int = 0) -> Evaluation:
    """The scores a training run ends with, on at most 2,000 images of each part.

    Args:
        encoder: The encoder.
        images: Training images.
        test: Test images; a fifth of the training images, held out from the probe alone, stands in where there are
            none.
        seed: Seed of choices and draws.
    """
    settings = EmbedSettings(seed=seed)
    part = "test images" if test is not None else "training images held out from the probe"
    images, test = (images, test) if test is not None else held_out(_few(images, seed), seed)
    images, test = (_few(each, seed).resized(encoder.config.image_size) for each in (images, test))
    known, shown = (encoder.embed(each, settings) for each in (images, test))
    changes = {f"{kind}, severity 5": corruption(kind, 5) for kind in _SEVEREST} | {"uniform noise": uniform_noise}
    others = {name: encoder.embed(test, settings, change=change) for name, change in changes.items()}
    scores: dict[str, Any] = {"evaluated_on": part, "images": len(test)}
    if "entropy" in shown.scores:
        scores["auroc_entropy"] = {
            name: detection(shown.scores["entropy"], each.scores["entropy"]).auroc for name, each in others.items()
        }
    result = Evaluation(scores, known, shown, test, others, seed)
    if result.probe is not None:
        scores |= {"linear_accuracy": result.probe.accuracy, "linear_ece": result.probe.ece}
        if len(shown.ids) >= shown.mean.shape[1]:
            scores["factors"] = dataclasses.asdict(factor_metrics(shown.mean, shown.known))
    return result


def evaluate_embeddings(
    train: Embeddings, test: Embeddings, *, protocols: Sequence[Protocol] = PROTOCOLS, seed: int = 0
) -> dict[str, Any]:
    """Results on the test images, for the features before the head and for the factors behind it.

    Args:
        train: Labelled training images, for probes.
        test: Labelled test images, with the same classes.
        protocols: ``knn``: 20 neighbours by cosine; ``linear``: logistic regression, with its calibration and a table
            of the classes; ``retrieval``: every test image against the others; ``factors``: :func:`factor_metrics`;
            ``selection``: k-NN and mAP of the factors with the largest activation; ``uncertainty``: how well each score
            finds the errors of the linear probe on the factors.
        seed: Seed of the probes.

    Returns:
        ``features`` and ``mean`` with the results of each place, ``classes``, ``selection`` and ``uncertainty``.
    """
    y, y_test = train.known, test.known
    places = {"features": (train.features, test.features), "mean": (train.mean, test.mean)}
    needed = places if "linear" in protocols else ["mean"] if "uncertainty" in protocols else []
    linear = {name: linear_probe(places[name][0], y, places[name][1], y_test, seed=seed) for name in needed}
    results: dict[str, Any] = {}
    for name, (z, z_test) in places.items():
        results[name] = _place(z, y, z_test, y_test, protocols)
        if "linear" in protocols:
            each, scaled = linear[name], calibration(z, y, z_test, y_test, seed=seed)
            results[name] |= {"linear": each.accuracy, "linear_f1": each.f1_macro, "linear_ece": each.ece}
            results[name]["linear_ece_scaled"] = scaled
    if "linear" in protocols:
        results["classes"] = class_rows(linear["features"].predictions, y_test, test.classes)
    if "selection" in protocols:
        results["selection"] = selection(train.mean, y, test.mean, y_test)
    if "uncertainty" in protocols:
        scores = {**test.scores, "probe confidence": -linear["mean"].probabilities.max(1)}
        results["uncertainty"] = error_detection(scores, linear["mean"].predictions == y_test)
    return results


def linear_probe(
    z: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m d"],
    y_test: Int[np.ndarray, " m"],
    *,
    seed: int = 0,
) -> ProbeResult:
    """Logistic regression on standardised features."""
    return probe(z, y, z_test, y_test, kind="logreg", seed=seed)


def class_rows(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a class of the test images: images, precision, recall, and the class it is most often taken for."""
    rows = []
    for index in np.unique(labels):
        own, chosen = labels == index, predictions == index
        wrong = np.bincount(predictions[own & ~chosen], minlength=1)
        rows.append(
            {
                "class": classes[index],
                "images": int(own.sum()),
                "precision": float((own & chosen).sum() / chosen.sum()) if chosen.any() else None,
                "recall": float((own & chosen).sum() / own.sum()),
                "taken for": classes[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return rows


def calibration(
    z: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m d"],
    y_test: Int[np.ndarray, " m"],
    *,
    seed: int = 0,
) -> float:
    """Expected calibration error of a logistic regression after temperature scaling on a held-out fifth."""
    order = np.random.default_rng(seed).permutation(len(y))
    held, kept = order[: len(y) // 5], order[len(y) // 5 :]
    if len(np.unique(y[kept])) < 2 or not np.isin(y[held], y[kept]).any():
        return float("nan")
    model = fit_probe(z[kept], y[kept], kind="logreg", strength=1.0)
    classes = np.asarray(model.classes_)
    held = held[np.isin(y[held], classes)]
    scaler = TemperatureScaler().fit(_log(model.predict_proba(z[held])), np.searchsorted(classes, y[held]))
    return expected_calibration_error(scaler.transform(_log(model.predict_proba(z_test))), _places(classes, y_test))


def selection(
    z: Float[np.ndarray, "n k"],
    y: Int[np.ndarray, " n"],
    z_test: Float[np.ndarray, "m k"],
    y_test: Int[np.ndarray, " m"],
) -> list[dict[str, float]]:
    """k-NN accuracy and mAP with the d factors of the largest activation, d = 4, 8, ... up to all."""
    order = rank_factors(z)
    sizes = [d for d in (2**power for power in range(2, 16)) if d < len(order)]
    rows = []
    for d in [*sizes, len(order)]:
        a, b = z[:, order[:d]], z_test[:, order[:d]]
        nearest = probe(a, y, b, y_test, kind="knn", scale=False)
        scores = retrieval_scores(b, y_test, measures=("map",))
        rows.append({"factors": d, "knn": nearest.accuracy, "map": scores["map"]})
    return rows


def _place(
    z: np.ndarray, y: np.ndarray, z_test: np.ndarray, y_test: np.ndarray, protocols: Sequence[Protocol]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "knn" in protocols:
        out["knn"] = probe(z, y, z_test, y_test, kind="knn", scale=False).accuracy
    if "retrieval" in protocols:
        scores = retrieval_scores(z_test, y_test, measures=("map", "precision@10"))
        out |= {"map": scores["map"], "precision_at_10": scores["precision@10"]}
    if "factors" in protocols:
        out["factors"] = dataclasses.asdict(factor_metrics(z_test, y_test))
    return out


def _few(images: ImageSet, seed: int) -> ImageSet:
    return images.take(np.sort(np.random.default_rng(seed).permutation(len(images))[:_MOST]))


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-12))


def _places(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Index of every label among the classes, -1 where it is none of them."""
    index = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return np.where(classes[index] == labels, index, -1)
