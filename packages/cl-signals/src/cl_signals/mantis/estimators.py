"""Mantis as scikit-learn estimators: a transformer and a classifier."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.training import OptimSettings, TrainSettings
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cl_signals.mantis.inference import Readout, SeriesClassifier, embed
from cl_signals.mantis.model import Mantis, MantisConfig, Preset, Token
from cl_signals.mantis.system import ClassifierSettings, Mode
from cl_signals.mantis.training import train_classifier


class MantisTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Frozen embeddings of series.

    Args:
        encoder: An encoder, or the folder of one; ``None`` for a network with random weights, whose convolutional
            features are a strong baseline.
        preset: Architecture of the random network.
        layer: Layer read out, -1 for the last.
        token: Token read out.
        sizes: Lengths the series are resized to.
        batch_size: Channels encoded at once.
        device: auto, cpu or cuda.
        random_state: Seed of the random network, a generator, or ``None``.
    """

    def __init__(
        self,
        encoder: Mantis | Path | str | None = None,
        *,
        preset: Preset = "tiny",
        layer: int = -1,
        token: Token = "combined",
        sizes: tuple[int, ...] = (512,),
        batch_size: int = 256,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.encoder = encoder
        self.preset = preset
        self.layer = layer
        self.token = token
        self.sizes = sizes
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "MantisTransformer":  # noqa: N803
        """Check the series and load the encoder; nothing is learned.

        Args:
            X: Series ``[n t]`` or ``[n c t]``.
            y: Not used.
        """
        X = _series(self, X, reset=True)  # noqa: N806
        self.channels_ = X.shape[1]
        encoder = _encoder(self.encoder) or _random_encoder(self.preset, _seed(self.random_state))
        self.encoder_ = copy.deepcopy(encoder).to(pick_device(self.device))
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Embed series.

        Returns:
            ``float32 [n d]``, the channels of a series side by side.
        """
        check_is_fitted(self)
        x = _series(self, X, reset=False)
        z = embed(self.encoder_, x, Readout(self.layer, self.token, self.sizes), batch_size=self.batch_size)
        return z.reshape(len(z), -1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


class MantisClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of series: a head on a frozen encoder, or the whole network.

    Args:
        encoder: An encoder, or the folder of one, which is left as it is; ``None`` for random weights.
        preset: Architecture without an encoder.
        mode: ``head``, ``adapter-head``, ``full`` or ``scratch``.
        adapter: Channel adapter, see :class:`ClassifierSettings`.
        layer: Layer read out, -1 for the last.
        token: Token read out.
        length: Length series are resized to.
        steps: Optimiser steps of every mode but ``head``.
        epochs: Passes over the training data, instead of ``steps``.
        lr: Peak learning rate of AdamW in these modes.
        batch_size: Series in a batch of these modes.
        calibrate: Share of the training data held out to calibrate the probabilities.
        random_state: Seed, a generator, or ``None``.
    """

    def __init__(
        self,
        encoder: Mantis | Path | str | None = None,
        *,
        preset: Preset = "tiny",
        mode: Mode = "head",
        adapter: str = "none",
        layer: int = -1,
        token: Token = "combined",
        length: int = 512,
        steps: int = 1000,
        epochs: int | None = None,
        lr: float = 2e-3,
        batch_size: int = 256,
        calibrate: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.encoder = encoder
        self.preset = preset
        self.mode = mode
        self.adapter = adapter
        self.layer = layer
        self.token = token
        self.length = length
        self.steps = steps
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.calibrate = calibrate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "MantisClassifier":  # noqa: N803
        """Train.

        Args:
            X: Series ``[n t]`` or ``[n c t]``.
            y: Class of each series.

        Raises:
            ValueError: Labels of another number than series, or of one class only.
        """
        x, y = _series(self, X, reset=True, y=y), _labels(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        seed = _seed(self.random_state)
        settings = ClassifierSettings(
            mode=self.mode,
            preset=self.preset,
            adapter=self.adapter,
            layer=self.layer,
            token=self.token,
            length=self.length,
            calibrate=self.calibrate,
            batch_size=self.batch_size,
            optim=OptimSettings(lr=self.lr, weight_decay=0.05, decay="all"),
            training=self._training(seed),
        )
        encoder = _encoder(self.encoder) or (None if self.mode == "scratch" else _random_encoder(self.preset, seed))
        names = [str(name) for name in self.classes_.tolist()]
        self.classifier_: SeriesClassifier = train_classifier(x, numbers, names, settings, encoder=encoder)
        return self

    def _training(self, seed: int) -> TrainSettings:
        if self.epochs is not None:
            return TrainSettings(epochs=self.epochs, seed=seed, progress=False)
        return TrainSettings(steps=self.steps, seed=seed, progress=False)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities ``[n k]``, columns in the order of ``classes_``."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(_series(self, X, reset=False))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Classes ``[n]``."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _series(estimator: Any, x: Any, *, reset: bool, y: Any = "no_validation") -> np.ndarray:
    """Checked series ``[n c t]``; scikit-learn's own checks see two dimensions."""
    shape = np.shape(x) if getattr(x, "ndim", None) == 3 else None
    if shape is not None:
        _check_channels(estimator, shape, reset=reset)
        x = np.asarray(x).reshape(shape[0], -1)
    if isinstance(y, str):
        flat = validate_data(estimator, x, reset=reset, dtype=np.float32)
    else:
        flat, _ = validate_data(estimator, x, y, reset=reset, dtype=np.float32)
    return np.asarray(flat)[:, None] if shape is None else np.asarray(flat).reshape(shape)


def _check_channels(estimator: Any, shape: tuple[int, ...], *, reset: bool) -> None:
    if reset:
        estimator.n_channels_in_ = shape[1]
    elif shape[1] != getattr(estimator, "n_channels_in_", 1):
        raise ValueError(
            f"X has {shape[1]} channels, but {type(estimator).__name__} is expecting "
            f"{getattr(estimator, 'n_channels_in_', 1)} channels as input"
        )


def _labels(y: Any) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        message = "A column-vector y was passed when a 1d array was expected"
        warnings.warn(message, DataConversionWarning, stacklevel=3)
        y = y.ravel()
    check_classification_targets(y)
    return y


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


def _encoder(encoder: Mantis | Path | str | None) -> Mantis | None:
    return Mantis.load(encoder) if isinstance(encoder, Path | str) else encoder


def _random_encoder(preset: Preset, seed: int) -> Mantis:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mantis(MantisConfig.preset(preset)).eval()
