"""Mantis as scikit-learn estimators: a transformer and a classifier."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cl_signals.mantis.classifier import FineTuneSettings, Mode, train_classifier
from cl_signals.mantis.embed import embed
from cl_signals.mantis.model import Mantis, MantisConfig, Preset, Token, load_model
from cl_signals.mantis.system import OptimSettings


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
        random_state: Seed of the random network.
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
        random_state: int = 0,
    ) -> None:
        self.encoder = encoder
        self.preset = preset
        self.layer = layer
        self.token = token
        self.sizes = sizes
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "MantisTransformer":  # noqa: N803
        """Check the series and load the encoder; nothing is learned.

        Args:
            X: Series ``[n t]`` or ``[n c t]``.
            y: Not used.
        """
        X = _series(self, X, reset=True)  # noqa: N806
        self.channels_ = X.shape[1]
        self.encoder_ = _encoder(self.encoder, self.preset, self.random_state)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Embed series.

        Returns:
            ``float32 [n d]``, the channels of a series side by side.
        """
        check_is_fitted(self)
        x = _series(self, X, reset=False)
        z = embed(self.encoder_, x, layer=self.layer, token=self.token, sizes=self.sizes, batch_size=self.batch_size)
        return z.reshape(len(z), -1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


class MantisClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of series: a head on a frozen encoder, or the whole network.

    Args:
        encoder: An encoder, or the folder of one; ``None`` for random weights.
        preset: Architecture without an encoder.
        mode: ``head``, ``adapter-head``, ``full`` or ``scratch``.
        adapter: Channel adapter, see :class:`FineTuneSettings`.
        layer: Layer read out, -1 for the last.
        token: Token read out.
        length: Length series are resized to.
        epochs: Passes over the training data.
        lr: Peak learning rate of AdamW.
        batch_size: Series in a batch.
        calibrate: Share of the training data held out to calibrate the probabilities.
        random_state: Seed.
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
        epochs: int = 100,
        lr: float = 2e-3,
        batch_size: int = 256,
        calibrate: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.encoder = encoder
        self.preset = preset
        self.mode = mode
        self.adapter = adapter
        self.layer = layer
        self.token = token
        self.length = length
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
        """
        x = _series(self, X, reset=True, y=y)
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            import warnings

            from sklearn.exceptions import DataConversionWarning

            warnings.warn(
                "A column-vector y was passed when a 1d array was expected", DataConversionWarning, stacklevel=2
            )
            y = y.ravel()
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        settings = FineTuneSettings(
            self.mode, self.adapter, self.layer, self.token, self.length, self.batch_size, self.calibrate
        )
        train = TrainSettings(
            epochs=self.epochs, seed=self.random_state, progress=False, checkpoint_every=10**9, accelerator="cpu"
        )
        with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, {}) as run:
            self.classifier_ = train_classifier(
                _encoder(self.encoder, self.preset, self.random_state),
                x,
                numbers,
                [str(name) for name in self.classes_.tolist()],
                run=run,
                settings=settings,
                optim=OptimSettings(lr=self.lr),
                train=train,
            )
        return self

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
    if getattr(x, "ndim", None) == 3:
        x = np.asarray(x)
        flat = validate_data(estimator, x.reshape(len(x), -1), reset=reset, dtype=np.float32)
        return np.asarray(flat).reshape(x.shape)
    if not isinstance(y, str):
        flat, _ = validate_data(estimator, x, y, reset=reset, dtype=np.float32)
    else:
        flat = validate_data(estimator, x, reset=reset, dtype=np.float32)
    return np.asarray(flat)[:, None]


def _encoder(encoder: Mantis | Path | str | None, preset: Preset, seed: int) -> Mantis:
    if isinstance(encoder, Mantis):
        return encoder
    if encoder is not None:
        return load_model(encoder)
    if seed < 0:
        raise InputError("the seed must not be negative", where="random_state", why=f"got {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mantis(MantisConfig.preset(preset)).eval()
