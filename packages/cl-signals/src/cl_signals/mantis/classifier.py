"""A trained classifier of series: adapter, encoder and head, fitted in one of four modes and kept in a run folder."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.evaluation import TemperatureScaler
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from contrastive_core.training.batches import order_of
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cl_signals.mantis.adapters import Adapter, LinearChannelCombiner, adapter_from_state, parse_adapter
from cl_signals.mantis.embed import embed, resize
from cl_signals.mantis.model import Mantis, MantisConfig, Token
from cl_signals.mantis.system import ClassifierSystem, OptimSettings

Mode = Literal["head", "adapter-head", "full", "scratch"]


@dataclasses.dataclass(frozen=True)
class FineTuneSettings:
    """What is trained, and on which view of the encoder.

    Attributes:
        mode: ``head`` trains a linear head on embeddings computed once; ``adapter-head`` trains a channel combiner
            with the head through the frozen encoder; ``full`` trains everything from the given encoder; ``scratch``
            trains everything from random weights.
        adapter: Channel adapter before the encoder: ``none``, ``pca:D``, ``svd:D``, ``rand:D``, ``variance:D`` or, with
            ``adapter-head``, ``linear:D``, where D is the number of channels kept.
        layer: Encoder layer read out, -1 for the last.
        token: Token read out.
        length: Length every series is resized to.
        batch_size: Series in a training batch.
        calibrate: Share of the training set held out to fit a softmax temperature, 0 for none.
    """

    mode: Mode = "head"
    adapter: str = "none"
    layer: int = -1
    token: Token = "combined"
    length: int = 512
    batch_size: int = 256
    calibrate: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise InputError(
                "a batch needs two series for the head's batch normalisation",
                where="--batch-size",
                why=f"got {self.batch_size}",
            )
        if not 0 <= self.calibrate < 0.9:
            raise InputError("the held-out share lies in [0, 0.9)", where="--calibrate", why=f"got {self.calibrate}")
        if self.adapter.startswith("linear") != (self.mode == "adapter-head"):
            raise InputError(
                "a trainable adapter and the mode adapter-head go together",
                where="--adapter",
                why=f"mode {self.mode} with adapter {self.adapter}",
                remedy="use --mode adapter-head --adapter linear:D, or a fitted adapter with another mode",
            )


def classification_head(width: int, classes: int) -> nn.Sequential:
    """Batch normalisation and one linear layer.

    Args:
        width: Length of the embedding of one series, all channels concatenated.
        classes: Number of classes.
    """
    return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))


class SeriesNetwork(nn.Module):
    """Series in, class logits out.

    Args:
        encoder: Encodes each channel on its own.
        head: Maps the concatenated channel embeddings to logits.
        combiner: Trainable mixture of channels before the encoder.
        layer: Encoder layer read out.
        token: Token read out.
    """

    def __init__(
        self, encoder: Mantis, head: nn.Module, combiner: LinearChannelCombiner | None, *, layer: int, token: Token
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.combiner = combiner
        self.layer = layer
        self.token: Token = token

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of series."""
        if self.combiner is not None:
            x = self.combiner(x)
        batch, channels, length = x.shape
        z = self.encoder(x.reshape(batch * channels, 1, length), layer=self.layer, token=self.token)
        return self.head(z.reshape(batch, -1))


class Classifier:
    """A fitted classifier.

    Args:
        network: Encoder, head and, if any, the trainable combiner.
        adapter: Fitted adapter applied before the network.
        classes: Class names; logit column j belongs to ``classes[j]``.
        settings: How it was fitted.
        channels: Channels expected of new series, before the adapter.
        temperature: Softmax temperature from calibration, 1 without.
    """

    def __init__(
        self,
        network: SeriesNetwork,
        *,
        adapter: Adapter | None,
        classes: list[str],
        settings: FineTuneSettings,
        channels: int,
        temperature: float = 1.0,
    ) -> None:
        self.network = network.eval()
        self.adapter = adapter
        self.classes = classes
        self.settings = settings
        self.channels = channels
        self.temperature = temperature

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
        prepared = _prepare(x, self.adapter, self.settings.length)
        with torch.inference_mode():
            parts = [self.network(part) for part in torch.from_numpy(prepared).split(batch_size)]
        return torch.cat(parts).double().numpy()

    def predict_proba(self, x: Float[np.ndarray, "n c t"], *, batch_size: int = 256) -> Float[np.ndarray, "n k"]:
        """Calibrated class probabilities, rows summing to one."""
        scaled = torch.from_numpy(self.logits(x, batch_size=batch_size)) / self.temperature
        return scaled.softmax(1).numpy()

    def save(self, run: RunFolder) -> None:
        """Write weights and description into the run folder."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        description: dict[str, Any] = {
            "kind": "mantis-classifier",
            "encoder": self.network.encoder.config.to_dict(),
            "classes": self.classes,
            "channels": self.channels,
            "temperature": self.temperature,
            "settings": dataclasses.asdict(self.settings),
            "adapter": None,
        }
        if self.adapter is not None:
            tensors, about = self.adapter.state()
            state |= {
                f"adapter.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()
            }
            description["adapter"] = about
        run.save_model(state, description)

    @classmethod
    def load(cls, path: Path | str) -> "Classifier":
        """Read a classifier back from its run folder.

        Raises:
            InputError: The folder holds no classifier, or its files are missing or corrupt.
        """
        state, description = RunFolder.open(path).load_model()
        if description.get("kind") != "mantis-classifier":
            raise InputError(
                "the run folder holds no classifier",
                where=path,
                why=f"it holds a {description.get('kind', 'model of unknown kind')}",
                remedy="name a folder written by `cl-signals mantis fit`",
            )
        try:
            settings = FineTuneSettings(**description["settings"])
            encoder = Mantis(MantisConfig.from_dict(description["encoder"]))
            tensors = {
                name.removeprefix("adapter."): v.numpy() for name, v in state.items() if name.startswith("adapter.")
            }
            adapter = None if description["adapter"] is None else adapter_from_state(tensors, description["adapter"])
            weights = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
            combiner = None
            if "combiner.weight" in weights:
                combiner = LinearChannelCombiner(*reversed(weights["combiner.weight"].shape))
            head = classification_head(weights["head.0.weight"].shape[0], len(description["classes"]))
            network = SeriesNetwork(encoder, head, combiner, layer=settings.layer, token=settings.token)
            network.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                "the classifier's description and weights do not fit together",
                where=path,
                why=str(error).splitlines()[0],
                remedy="train it again, or restore the folder",
            ) from error
        return cls(
            network,
            adapter=adapter,
            classes=list(description["classes"]),
            settings=settings,
            channels=int(description["channels"]),
            temperature=float(description["temperature"]),
        )


def train_classifier(
    encoder: Mantis,
    x: Float[np.ndarray, "n c t"],
    y: Int[np.ndarray, " n"],
    classes: list[str],
    *,
    run: RunFolder,
    settings: FineTuneSettings,
    optim: OptimSettings,
    train: TrainSettings,
) -> Classifier:
    """Fit a classifier of series in the mode the settings name.

    Args:
        encoder: The encoder to start from; ``scratch`` takes only its architecture.
        x: Series, all of one length.
        y: Class of every series, 0..K-1.
        classes: The K class names.
        run: Where logs and checkpoints go; the classifier itself is saved by the caller.
        settings: What is trained.
        optim: AdamW and schedule.
        train: Epochs or steps, seed and the like.

    Raises:
        InputError: Fewer than two classes or series, or settings that do not fit the data.
    """
    if len(classes) < 2 or len(x) < 2:
        raise InputError(
            "a classifier needs at least two classes and two series",
            why=f"found {len(x)} series of {len(classes)} class(es)",
            remedy="add labelled series of another class",
        )
    channels = x.shape[1]
    torch.manual_seed(train.seed)
    if settings.mode == "scratch":
        encoder = Mantis(encoder.config)
    adapter, combiner = parse_adapter(settings.adapter, channels=channels, seed=train.seed)
    if adapter is not None:
        adapter.fit(x)
    width = combiner.weight.shape[0] if combiner is not None else (channels if adapter is None else adapter.channels)
    head = classification_head(width * encoder.embedding_dim(settings.token), len(classes))
    network = SeriesNetwork(encoder, head, combiner, layer=settings.layer, token=settings.token)

    prepared = _prepare(x, adapter, settings.length)
    fitting, held_out = _hold_out(y, settings.calibrate, train.seed)
    if settings.mode == "head":
        # The encoder does not change, so every series is encoded once; the head learns from the stored vectors.
        z = embed(encoder, prepared, layer=settings.layer, token=settings.token, sizes=(settings.length,))
        inputs = torch.from_numpy(z.reshape(len(z), -1))
        trained: nn.Module = head
        frozen = None
    else:
        inputs = torch.from_numpy(prepared)
        trained = network
        frozen = encoder if settings.mode == "adapter-head" else None
    loader = _batches(inputs[fitting], torch.from_numpy(y)[fitting], settings.batch_size, train.seed)
    steps = train.total_steps(order_of(loader).per_epoch)
    fit(ClassifierSystem(trained, optim=optim, total_steps=steps, frozen=frozen), loader, run=run, settings=train)

    network.requires_grad_(True)
    classifier = Classifier(network, adapter=adapter, classes=classes, settings=settings, channels=channels)
    if len(held_out):
        scaler = TemperatureScaler().fit(classifier.logits(x[held_out]), y[held_out])
        classifier.temperature = float(scaler.temperature)
    return classifier


def _prepare(x: np.ndarray, adapter: Adapter | None, length: int) -> Float[np.ndarray, "n c t"]:
    series = x.astype(np.float32) if adapter is None else adapter.transform(x).astype(np.float32)
    return resize(torch.from_numpy(np.ascontiguousarray(series)), length).numpy()


def _hold_out(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit on and to calibrate on, stratified; every class keeps at least one series to fit on."""
    everything = np.arange(len(y))
    if share == 0:
        return everything, everything[:0]
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        held.extend(members[: min(round(share * len(members)), len(members) - 1)].tolist())
    if not held:
        raise InputError(
            "too few series to hold any out for calibration",
            where="--calibrate",
            why=f"{len(y)} series and a share of {share} leave none in any class",
            remedy="raise the share, or leave calibration out",
        )
    return np.setdiff1d(everything, held), np.sort(held)


def _batches(x: Tensor, y: Tensor, batch_size: int, seed: int) -> Any:
    dataset = TensorDataset(x, y)
    # A last batch of one series has no batch statistics; it is dropped when a full batch remains.
    keep = len(dataset) - 1 if len(dataset) > batch_size and len(dataset) % batch_size == 1 else len(dataset)
    return batches(dataset, batch_size, seed=seed, drop_last=keep < len(dataset))
