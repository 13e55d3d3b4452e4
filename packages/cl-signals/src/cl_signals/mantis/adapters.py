"""Channel adapters: fewer channels before the encoder, fitted on the training series or trained with the head."""

from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float
from torch import Tensor, nn


class MultichannelProjector:
    """Linear projection of patches of time steps, all channels together, to fewer channels.

    Series ``[n D t]`` become rows ``[n*t/w, w*D]``, are projected to ``w*D'`` numbers, and go back to ``[n D' t]``.

    Args:
        channels: Channels D' kept.
        base: ``pca``, ``svd``, ``rand`` (Gaussian random projection), or ``custom`` with ``transformer``.
        window: Time steps w projected together.
        seed: Seed of the random parts.
        transformer: For ``custom``: anything with scikit-learn's ``fit`` and ``transform``.
    """

    def __init__(
        self,
        channels: int,
        base: Literal["pca", "svd", "rand", "custom"] = "pca",
        *,
        window: int = 1,
        seed: int = 0,
        transformer: Any = None,
    ) -> None:
        if channels < 1 or window < 1:
            raise InputError("channels and window are positive", where="--adapter", why=f"got {channels} and {window}")
        if (base == "custom") != (transformer is not None):
            raise InputError("a custom projection comes with its transformer, and only then", where="--adapter")
        self.channels, self.base, self.window, self.seed = channels, base, window, seed
        self.transformer = transformer
        self._mean: np.ndarray | None = None
        self._components: np.ndarray | None = None
        self._fitted = False

    def fit(self, x: Float[np.ndarray, "n D t"]) -> "MultichannelProjector":
        """Fit on training series.

        Raises:
            InputError: More channels are asked for than there are, or the length is no multiple of the window.
        """
        rows, target = self._rows(x), self.window * self.channels
        if self.channels > x.shape[1] or target > min(rows.shape):
            raise InputError(
                "the adapter would keep more channels than there are",
                where="--adapter",
                why=f"{self.channels} of {x.shape[1]} channels, {len(rows)} rows to fit on",
                remedy=f"keep at most {min(x.shape[1], len(rows) // self.window)}",
            )
        self._mean = np.zeros(rows.shape[1])
        if self.base == "pca":
            from sklearn.decomposition import PCA

            pca = PCA(target, svd_solver="full").fit(rows)
            self._mean, self._components = pca.mean_, pca.components_
        elif self.base == "svd":
            if target == rows.shape[1]:  # scikit-learn's truncated SVD wants strictly fewer components
                self._components = np.linalg.svd(rows, full_matrices=False)[2]
            else:
                from sklearn.decomposition import TruncatedSVD

                self._components = (
                    TruncatedSVD(target, algorithm="arpack", random_state=self.seed).fit(rows).components_
                )
        elif self.base == "rand":
            from sklearn.random_projection import GaussianRandomProjection

            self._components = GaussianRandomProjection(target, random_state=self.seed).fit(rows).components_
        else:
            self.transformer.fit(rows)
        self._fitted = True
        return self

    def transform(self, x: Float[np.ndarray, "n D t"]) -> Float[np.ndarray, "n d t"]:
        """Project series.

        Raises:
            InputError: Not fitted, or other channels than at fitting.
        """
        if not self._fitted:
            raise InputError("the adapter was not fitted", remedy="call fit with training series first")
        rows = self._rows(x)
        if self._components is not None:
            if rows.shape[1] != self._components.shape[1]:
                raise InputError("the channels differ from those the adapter was fitted on", why=f"got {x.shape[1]}")
            rows = (rows - self._mean) @ self._components.T
        else:
            rows = np.asarray(self.transformer.transform(rows))
        blocks = rows.reshape(len(x), x.shape[2] // self.window, self.window, self.channels)
        return blocks.reshape(len(x), -1, self.channels).transpose(0, 2, 1).astype(np.float32)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and description to save.

        Raises:
            InputError: A custom projection, which has no portable form.
        """
        if self._components is None or self._mean is None:
            raise InputError("a custom projection cannot be saved", remedy="use pca, svd or rand")
        about = {"kind": "projector", "base": self.base, "channels": self.channels, "window": self.window}
        return {"mean": self._mean, "components": self._components}, about

    def _rows(self, x: np.ndarray) -> np.ndarray:
        channels, length = x.shape[1:]
        if length % self.window:
            raise InputError(
                "the series length is no multiple of the adapter's window",
                where="--adapter",
                why=f"length {length}, window {self.window}",
            )
        return x.transpose(0, 2, 1).reshape(-1, self.window * channels).astype(np.float64)


class VarianceBasedSelector:
    """Keep the channels of highest variance over all series and times.

    Args:
        channels: Channels kept.
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise InputError("at least one channel is kept", where="--adapter", why=f"got {channels}")
        self.channels = channels
        self._keep: np.ndarray | None = None

    def fit(self, x: Float[np.ndarray, "n D t"]) -> "VarianceBasedSelector":
        """Choose channels on training series."""
        if self.channels > x.shape[1]:
            raise InputError(
                "the adapter would keep more channels than there are",
                where="--adapter",
                why=f"{self.channels} of {x.shape[1]}",
            )
        variance = x.astype(np.float64).var(axis=(0, 2))
        self._keep = np.sort(np.argsort(-variance, kind="stable")[: self.channels])
        return self

    def transform(self, x: Float[np.ndarray, "n D t"]) -> Float[np.ndarray, "n d t"]:
        """The chosen channels, in their old order."""
        if self._keep is None:
            raise InputError("the adapter was not fitted", remedy="call fit with training series first")
        return x[:, self._keep].astype(np.float32)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and description to save."""
        if self._keep is None:
            raise InputError("the adapter was not fitted", remedy="call fit with training series first")
        return {"keep": self._keep}, {"kind": "variance", "channels": self.channels}


class LinearChannelCombiner(nn.Module):
    """Trainable mixture of channels, the same at every time step; trained with the head.

    Args:
        channels: Channels D of the data.
        kept: Channels D' handed to the encoder.
    """

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        linear = nn.Linear(channels, kept)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Float[Tensor, "b D t"]) -> Float[Tensor, "b d t"]:
        """Mix channels."""
        return torch.einsum("bct,dc->bdt", x, self.weight) + self.bias[:, None]


Adapter = MultichannelProjector | VarianceBasedSelector


def parse_adapter(text: str, *, channels: int, seed: int) -> tuple[Adapter | None, LinearChannelCombiner | None]:
    """An adapter from its option, ``none`` or ``KIND:D`` with KIND one of pca, svd, rand, variance, linear.

    Raises:
        InputError: The text is none of these.
    """
    if text == "none":
        return None, None
    kind, _, number = text.partition(":")
    if kind not in ("pca", "svd", "rand", "variance", "linear") or not number.isdigit() or int(number) < 1:
        raise InputError(
            "unknown channel adapter",
            where="--adapter",
            why=f"got {text}",
            remedy="use none, pca:D, svd:D, rand:D, variance:D or linear:D with D channels kept",
        )
    if kind == "linear":
        return None, LinearChannelCombiner(channels, int(number))
    if kind == "variance":
        return VarianceBasedSelector(int(number)), None
    return MultichannelProjector(int(number), kind, seed=seed), None  # type: ignore[arg-type]


def adapter_from_state(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> Adapter:
    """Rebuild a fitted adapter from its :meth:`state`."""
    if about["kind"] == "variance":
        selector = VarianceBasedSelector(about["channels"])
        selector._keep = arrays["keep"]
        return selector
    projector = MultichannelProjector(about["channels"], about["base"], window=about["window"])
    projector._mean, projector._components, projector._fitted = arrays["mean"], arrays["components"], True
    return projector
