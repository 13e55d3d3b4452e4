"""Training: images in, a trained encoder out."""

import dataclasses
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from cl_foundations.cfa.inference import Embeddings, FactorEncoder
from cl_foundations.cfa.model import FactorModel, Method, ModelConfig
from cl_foundations.cfa.objective import ObjectiveSettings
from cl_foundations.cfa.system import FactorSystem, Settings
from cl_foundations.images.arrays import image_set
from cl_foundations.images.sets import ImageSet


def train_factors(images: ImageSet, settings: Settings = Settings(), run: RunFolder | None = None) -> FactorEncoder:
    """Train CFA, CNFA, SimCLR or NCL.

    Args:
        images: At least two images; views are cut from them, so they may be larger than the network's input.
        settings: Settings of the run.
        run: Where logs and checkpoints go; nothing is written without it.

    Raises:
        InputError: Fewer than two images, no labels where classes are positives, or as :func:`fit`.
    """
    if len(images) < 2:
        raise InputError("contrastive training needs at least two images", where=images.name, why=f"got {len(images)}")
    if settings.objective.supervised:
        images.labelled("training with classes as positives")
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(images)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        model = FactorModel(settings.model, weights=settings.weights)
    loader = batches(images.training_set(), settings.batch_size, seed=settings.training.seed, workers=settings.workers)
    fit(FactorSystem(model, settings), loader, settings=settings.training, run=run)
    return FactorEncoder(model, settings.objective.prior)


class ContrastiveFactorAnalysis(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Contrastive factor analysis of image arrays, as an estimator of scikit-learn.

    Settings that are not here are those of :class:`Settings`; :func:`train_factors` takes all of them.

    Args:
        method: ``cnfa``, ``cfa``, ``ncl`` or ``simclr``.
        factors: Number of factors.
        hidden: Width of the head's hidden layer.
        backbone: As :class:`ModelConfig`.
        eta: Weight of the KL, the method's own if ``None``.
        epochs: Passes over the images.
        batch_size: Images in a batch.
        settings: Everything else; the arguments above take precedence.
        random_state: Seed, numpy generator, or ``None`` for draws from numpy's global one.

    Attributes:
        encoder_: The trained :class:`FactorEncoder`, with all it can do.
        image_shape_: Shape of an image.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        >>> cfa = ContrastiveFactorAnalysis(factors=4, hidden=8, epochs=1, random_state=0)
        >>> cfa.fit(images).transform(images).shape
        (8, 4)
    """

    def __init__(
        self,
        method: Method = "cnfa",
        *,
        factors: int = 64,
        hidden: int = 256,
        backbone: str = "tiny",
        eta: float | None = None,
        epochs: int = 100,
        batch_size: int = 256,
        settings: Settings = Settings(training=TrainSettings(progress=False)),
        random_state: int | np.integer[Any] | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.factors = factors
        self.hidden = hidden
        self.backbone = backbone
        self.eta = eta
        self.epochs = epochs
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state

    def fit(self, images: Shaped[np.ndarray, "n h w *c"], labels: object = None) -> "ContrastiveFactorAnalysis":
        """Train on images ``[n h w]`` or ``[n h w c]`` of 8 or 16 bits; labels serve as positives if settings say so.

        Raises:
            InputError: As :func:`image_set` and :func:`train_factors`.
        """
        data = image_set(images, None if labels is None else np.asarray(labels))
        self.encoder_ = train_factors(data, self._settings(data.side))
        self.image_shape_ = np.shape(images)[1:]
        return self

    def transform(self, images: Shaped[np.ndarray, "n h w *c"]) -> Float[np.ndarray, "n k"]:
        """Means of the factors; errors as :meth:`embed`."""
        return self.embed(images).mean

    def embed(self, images: Shaped[np.ndarray, "n h w *c"]) -> Embeddings:
        """Features, factors and uncertainties.

        Raises:
            NotFittedError: Before :meth:`fit`.
            InputError: The images have another shape than those of the training.
        """
        check_is_fitted(self, "encoder_")
        if np.shape(images)[1:] != self.image_shape_:
            why = f"got {np.shape(images)[1:]}, trained on {self.image_shape_}"
            raise InputError("the images have another shape than those of the training", where="images", why=why)
        return self.encoder_.embed(images)

    def _settings(self, side: int) -> Settings:
        config = self.settings
        model: ModelConfig = dataclasses.replace(
            config.model,
            method=self.method,
            factors=self.factors,
            hidden=self.hidden,
            backbone=self.backbone,
            image_size=side,
        )
        objective: ObjectiveSettings = dataclasses.replace(config.objective, eta=self.eta)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        training = dataclasses.replace(config.training, epochs=self.epochs, steps=None, seed=int(seed))
        return dataclasses.replace(
            config, model=model, objective=objective, training=training, batch_size=self.batch_size
        )
