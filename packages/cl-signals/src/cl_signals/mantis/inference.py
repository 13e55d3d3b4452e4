"""What is used after training: frozen embeddings of series, and the trained classifier."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError
from contrastive_core.scale import spread
from contrastive_core.weights import load_model, load_weights, save_weights
from jaxtyping import Float
from torch import Tensor

from cl_signals.mantis.adapters import Adapter, LinearChannelCombiner, adapter_from_state
from cl_signals.mantis.heads import SeriesNetwork, classification_head
from cl_signals.mantis.model import Mantis, MantisConfig, Token
from cl_signals.mantis.system import ClassifierSettings
from cl_signals.series.sets import SeriesSet, resize, to_batch

Precision = Literal["float32", "bf16"]


@dataclasses.dataclass(frozen=True)
class Readout:
    """Which view of the encoder becomes the embedding.

    Attributes:
        layer: Encoder layer, -1 for the last; an intermediate layer is often the best.
        token: ``cls``, ``mean`` or ``combined``.
        sizes: Lengths the series are resized to; several are concatenated (self-ensembling).
        precision: ``float32``, or ``bf16`` for the transformer (not the token generator).
    """

    layer: int = -1
    token: Token = "combined"
    sizes: tuple[int, ...] = (512,)
    precision: Precision = "float32"


def embed(
    model: Mantis,
    x: Float[np.ndarray, "n c t"],
    readout: Readout = Readout(),
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Float[np.ndarray, "n c h"]:
    """Embed every channel of every series with the frozen encoder.

    Args:
        model: The encoder; put into eval mode.
        x: Raw values, finite.
        readout: What is taken as embedding.
        batch_size: Channels encoded at once; bounds the memory.
        progress: Show a progress bar.

    Returns:
        ``float32 [n c h*len(sizes)]``.

    Raises:
        InputError: Not a 3-D array of finite numbers, or a length the encoder does not take.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 3 or 0 in x.shape:
        raise InputError("series come as (series, channels, time), none of them empty", why=f"got shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError(
            "the series hold NaN or infinite values",
            why=f"{int((~np.isfinite(x)).sum())} of {x.size} values",
            remedy="read files through cl_signals.series.read_series, which fills gaps, or fill them first",
        )
    if not readout.sizes:
        raise InputError("at least one size is needed", where="--sizes")
    for size in readout.sizes:
        model.check_length(size)
    model.layer_index(readout.layer)
    model.eval()
    device = next(model.parameters()).device
    flat = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, 1, x.shape[-1])))
    width = model.embedding_dim(readout.token)
    out = np.empty((len(flat), width * len(readout.sizes)), dtype=np.float32)
    half = readout.precision == "bf16"
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        for start in _starts(len(flat), batch_size, progress):
            part = flat[start : start + batch_size].to(device)
            for index, size in enumerate(readout.sizes):
                z = model(resize(part, size), layer=readout.layer, token=readout.token)
                out[start : start + batch_size, index * width : (index + 1) * width] = z.float().cpu().numpy()
    return out.reshape(len(x), x.shape[1], -1)


def embed_set(models: Mantis | Sequence[Mantis], series: SeriesSet, readout: Readout) -> Float[np.ndarray, "n d"]:
    """Embeddings of a set, the channels of a series side by side; of several encoders with :func:`fuse`."""
    models = [models] if isinstance(models, Mantis) else models
    # Each size is taken from the series' own lengths, so that no information is lost on the way.
    batches = {size: to_batch(series, size) for size in readout.sizes}
    blocks = []
    for model in models:
        parts = [embed(model, x, dataclasses.replace(readout, sizes=(size,))) for size, x in batches.items()]
        blocks.append(np.concatenate([part.reshape(len(series), -1) for part in parts], 1))
    return blocks[0] if len(blocks) == 1 else fuse(blocks)


def embed_parts(
    folders: Sequence[Path],
    series: SeriesSet,
    readout: Readout,
    *,
    device: str = "auto",
    workers: int = 1,
    cluster: str | None = None,
) -> Float[np.ndarray, "n d"]:
    """:func:`embed_set` of many series, spread over processes or a cluster.

    Args:
        folders: Folders of the encoders.
        series: The set.
        readout: What is taken as embedding.
        device: Where the encoders run.
        workers: Processes.
        cluster: Ray cluster, see :func:`contrastive_core.scale.spread`.

    Raises:
        InputError: An encoder cannot be loaded, or takes no such series.
    """
    parts = [series[start : start + _PART] for start in range(0, len(series), _PART)]
    setup = functools.partial(load_encoders, tuple(folders), device)
    work = functools.partial(_embed_part, readout)
    outcomes = spread(
        work, parts, setup=setup, key=lambda part: part.ids[0], workers=workers, cluster=cluster, label="embedding part"
    )
    return np.concatenate([outcome.get() for outcome in outcomes])


def _embed_part(readout: Readout, encoders: list[Mantis], part: SeriesSet) -> np.ndarray:
    return embed_set(encoders, part, readout)


def fuse(blocks: Sequence[Float[np.ndarray, "n _"]], *, normalise: bool = True) -> Float[np.ndarray, "n d"]:
    """Concatenate the embeddings of several models (cross-model fusion of the MantisV2 report).

    Args:
        blocks: One array a model, the same series in the same order.
        normalise: Bring every block's rows to unit norm first, so that no model outweighs another.

    Raises:
        ValueError: The blocks do not hold the same number of series.

    Example:
        >>> import numpy as np
        >>> fuse([np.array([[3.0, 4.0]]), np.array([[2.0]])])
        array([[0.6, 0.8, 1. ]])
    """
    if len({len(block) for block in blocks}) != 1:
        raise ValueError(f"expected blocks of the same series, got {[len(block) for block in blocks]} rows")
    if normalise:
        blocks = [block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12) for block in blocks]
    return np.concatenate(blocks, 1)


def load_encoders(folders: Sequence[Path], device: str = "auto") -> list[Mantis]:
    """Encoders of several folders, on one device.

    Raises:
        InputError: A folder holds no encoder, or the device is not there.
    """
    target = pick_device(device)
    return [Mantis.load(folder).to(target) for folder in folders]


def is_classifier(folder: Path) -> bool:
    """Whether a run folder holds a classifier, and not an encoder.

    Raises:
        InputError: It holds no model.
    """
    return load_weights(folder)[1].get("kind") == SeriesClassifier.KIND


class SeriesClassifier:
    """A fitted classifier: adapter, encoder and head.

    Args:
        network: Encoder, head and, if any, the trainable combiner.
        adapter: Fitted adapter applied before the network.
        classes: Class names; logit column j belongs to ``classes[j]``.
        settings: How it was fitted.
        channels: Channels expected of new series, before the adapter.
        temperature: Softmax temperature from calibration, 1 without.
    """

    KIND = "mantis-classifier"

    def __init__(
        self,
        network: SeriesNetwork,
        *,
        adapter: Adapter | None,
        classes: list[str],
        settings: ClassifierSettings,
        channels: int,
        temperature: float = 1.0,
    ) -> None:
        self.network = network.eval()
        self.adapter, self.classes, self.settings = adapter, classes, settings
        self.channels, self.temperature = channels, temperature

    def logits(self, x: Float[np.ndarray, "n c t"], *, batch_size: int = 256) -> Float[np.ndarray, "n k"]:
        """Uncalibrated logits of new series.

        Raises:
            InputError: The number of channels differs from the training data's.
        """
        if x.ndim != 3 or x.shape[1] != self.channels:
            raise InputError(
                "the series do not have the channels the classifier was trained on",
                why=f"expected {self.channels} channel(s), got shape {tuple(x.shape)} (series, channels, time)",
                remedy="pass the channels used in training, in the same order",
            )
        self.network.eval()  # dropout and batch statistics must not depend on who used the network before
        device = next(self.network.parameters()).device
        ready = torch.from_numpy(prepare(x, self.adapter, self.settings.length))
        with torch.inference_mode():
            parts = [self.network(part.to(device)).cpu() for part in ready.split(batch_size)]
        return torch.cat(parts).double().numpy()

    def predict_proba(self, x: Float[np.ndarray, "n c t"], *, batch_size: int = 256) -> Float[np.ndarray, "n k"]:
        """Calibrated class probabilities, rows summing to one."""
        scaled = torch.from_numpy(self.logits(x, batch_size=batch_size)) / self.temperature
        return scaled.softmax(1).numpy()

    def predict_rows(self, series: SeriesSet) -> list[dict[str, Any]]:
        """A row a series: id, label, and the probability of every class."""
        names = [f"prob_{name}" for name in self.classes]
        return [
            {
                "id": name,
                "label": self.classes[int(row.argmax())],
                **dict(zip(names, row.round(6).tolist(), strict=True)),
            }
            for name, row in zip(series.ids, self.predict_proba(to_batch(series, self.settings.length)), strict=True)
        ]

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write weights and description, into a run folder for instance."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        about = None
        if self.adapter is not None:
            arrays, about = self.adapter.state()
            state |= {f"adapter.{name}": torch.from_numpy(np.ascontiguousarray(v)) for name, v in arrays.items()}
        description = {
            "kind": self.KIND,
            "encoder": self.network.encoder.config.to_dict(),
            "classes": self.classes,
            "channels": self.channels,
            "temperature": self.temperature,
            "readout": {name: getattr(self.settings, name) for name in _KEPT},
            "adapter": about,
        }
        save_weights(folder, state, description)

    @classmethod
    def load(cls, folder: Path | str | os.PathLike[str], device: str = "auto") -> "SeriesClassifier":
        """Read a classifier written by :meth:`save`.

        Raises:
            InputError: The folder holds no classifier, or its files are corrupt.
        """
        target = pick_device(device)

        def build(state: dict[str, Tensor], description: dict[str, Any]) -> SeriesClassifier:
            settings = ClassifierSettings(**description["readout"])
            encoder = Mantis(MantisConfig.from_dict(description["encoder"]))
            arrays = {n.removeprefix("adapter."): v.numpy() for n, v in state.items() if n.startswith("adapter.")}
            weights = {n.removeprefix("network."): v for n, v in state.items() if n.startswith("network.")}
            combiner = None
            if "combiner.weight" in weights:
                combiner = LinearChannelCombiner(*reversed(weights["combiner.weight"].shape))
            classes = len(description["classes"])
            if settings.mode == "head":
                head = torch.nn.Sequential(torch.nn.Linear(weights["head.0.weight"].shape[1], classes))
            else:
                head = classification_head(weights["head.0.weight"].shape[0], classes)
            network = SeriesNetwork(encoder, head, combiner, layer=settings.layer, token=settings.token)
            network.load_state_dict(weights)
            return cls(
                network.to(target),
                adapter=None if description["adapter"] is None else adapter_from_state(arrays, description["adapter"]),
                classes=[str(name) for name in description["classes"]],
                settings=settings,
                channels=int(description["channels"]),
                temperature=float(description["temperature"]),
            )

        return load_model(folder, cls.KIND, build, made_by="cl-signals mantis train")


_PART = 512
"""Series a worker embeds at a time."""

_KEPT = ("mode", "adapter", "layer", "token", "length")
"""Settings a classifier needs after training."""


def prepare(x: Float[np.ndarray, "n c t"], adapter: Adapter | None, length: int) -> Float[np.ndarray, "n d l"]:
    """Series as the network takes them: through the adapter, at one length."""
    series = x.astype(np.float32) if adapter is None else adapter.transform(x).astype(np.float32)
    return resize(torch.from_numpy(np.ascontiguousarray(series)), length).numpy()


def _starts(count: int, batch_size: int, progress: bool) -> Sequence[int]:
    starts = range(0, count, batch_size)
    if not progress:
        return starts
    from rich.progress import track

    return track(starts, description="embedding")  # type: ignore[return-value]
