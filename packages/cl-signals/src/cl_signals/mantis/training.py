"""Pre-training an encoder, and fitting a classifier of series in one of four modes."""

import copy

import numpy as np
import torch
from contrastive_core.data import stratified_split
from contrastive_core.errors import InputError
from contrastive_core.evaluation import TemperatureScaler
from contrastive_core.training import RunFolder, batches, fit
from jaxtyping import Float, Int
from torch import nn
from torch.utils.data import TensorDataset

from cl_signals.mantis.adapters import parse_adapter
from cl_signals.mantis.heads import SeriesNetwork, classification_head, logistic_head
from cl_signals.mantis.inference import Readout, SeriesClassifier, embed, prepare
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.system import ClassifierSettings, ClassifierSystem, PretrainSettings, PretrainSystem
from cl_signals.series.sets import resize


def new_encoder(settings: PretrainSettings) -> Mantis:
    """The encoder pre-training starts from: random weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        return Mantis(MantisConfig.preset(settings.preset))


def pretrain_encoder(
    corpus: Float[np.ndarray, "n t"],
    settings: PretrainSettings = PretrainSettings(),
    *,
    run: RunFolder | None = None,
) -> Mantis:
    """Pre-train an encoder contrastively.

    Args:
        corpus: Unlabelled series, each channel of a multivariate one on its own; resized to the encoder's length.
        settings: Architecture, augmentation, optimiser, length of the run.
        run: Where logs and checkpoints go.

    Returns:
        The encoder in eval mode.

    Raises:
        InputError: Fewer than two series.
    """
    if len(corpus) < 2:
        raise InputError("contrastive pre-training needs at least two series", why=f"there are {len(corpus)}")
    model = new_encoder(settings)
    series = resize(torch.from_numpy(corpus)[:, None], model.config.seq_len)
    loader = batches(TensorDataset(series), settings.batch_size, seed=settings.training.seed)
    fit(PretrainSystem(model, settings), loader, settings=settings.training, run=run)
    return model.eval()


def train_classifier(
    x: Float[np.ndarray, "n c t"],
    y: Int[np.ndarray, " n"],
    classes: list[str],
    settings: ClassifierSettings = ClassifierSettings(),
    *,
    encoder: Mantis | None = None,
    run: RunFolder | None = None,
) -> SeriesClassifier:
    """Fit a classifier of series in the mode the settings name.

    Args:
        x: Series, all of one length.
        y: Class of every series, 0..K-1.
        classes: The K class names.
        settings: What is trained.
        encoder: The encoder to start from; it is left as it is. ``scratch`` takes only its architecture.
        run: Where logs and checkpoints go.

    Raises:
        InputError: Fewer than two classes or series, no encoder where the mode needs one, or settings that do not fit
            the data.
    """
    if len(classes) < 2 or len(x) < 2:
        raise InputError(
            "a classifier needs at least two classes and two series",
            why=f"got {len(x)} series of {len(classes)} class(es)",
            remedy="add labelled series of another class",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        network = _start_network(encoder, settings, channels=x.shape[1])
        adapter, network.combiner = parse_adapter(settings.adapter, channels=x.shape[1], seed=settings.training.seed)
        if adapter is not None:
            adapter.fit(x)
        kept = adapter.channels if adapter is not None else x.shape[1]
        width = kept if network.combiner is None else network.combiner.weight.shape[0]
        network.head = classification_head(width * network.encoder.embedding_dim(settings.token), len(classes))
    network.encoder.check_length(settings.length)
    network.encoder.layer_index(settings.layer)

    prepared = prepare(x, adapter, settings.length)
    fitting, held_out = _hold_out(y, settings)
    if settings.mode == "head":
        readout = Readout(settings.layer, settings.token, (settings.length,))
        z = embed(network.encoder, prepared[fitting], readout).reshape(len(fitting), -1)
        network.head = logistic_head(z, y[fitting], seed=settings.training.seed)
    else:
        _train_network(network, prepared[fitting], y[fitting], settings, run)
    classifier = SeriesClassifier(network, adapter=adapter, classes=classes, settings=settings, channels=x.shape[1])
    if len(held_out):
        scaler = TemperatureScaler().fit(classifier.logits(x[held_out]), y[held_out])
        classifier.temperature = float(scaler.temperature)
    return classifier


def _start_network(encoder: Mantis | None, settings: ClassifierSettings, *, channels: int) -> SeriesNetwork:
    if encoder is None and settings.mode != "scratch":
        raise InputError(
            f"mode {settings.mode} starts from an encoder",
            where="--encoder",
            remedy="name the folder of an encoder, or use --mode scratch",
        )
    if encoder is None or settings.mode == "scratch":
        encoder = Mantis(MantisConfig.preset(settings.preset) if encoder is None else encoder.config)
    else:
        encoder = copy.deepcopy(encoder).cpu()
    return SeriesNetwork(encoder, nn.Identity(), None, layer=settings.layer, token=settings.token)


def _train_network(
    network: SeriesNetwork, x: np.ndarray, y: np.ndarray, settings: ClassifierSettings, run: RunFolder | None
) -> None:
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    # A last batch of one series has no batch statistics; it is dropped when a full batch remains.
    drop = len(dataset) > settings.batch_size and len(dataset) % settings.batch_size == 1
    loader = batches(dataset, settings.batch_size, seed=settings.training.seed, drop_last=drop)
    frozen = network.encoder if settings.mode == "adapter-head" else None
    for unread in network.encoder.unread(settings.layer):
        unread.requires_grad_(False)
    fit(ClassifierSystem(network, settings.optim, frozen=frozen), loader, settings=settings.training, run=run)
    network.requires_grad_(True)


def _hold_out(y: np.ndarray, settings: ClassifierSettings) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit on and to calibrate on."""
    fitting, held_out = stratified_split(y, settings.calibrate, seed=settings.training.seed)
    if settings.calibrate and not len(held_out):
        raise InputError(
            "too few series to hold any out for calibration",
            where="--calibrate",
            why=f"{len(y)} series and a share of {settings.calibrate} leave none in any class",
            remedy="raise the share, or leave calibration out",
        )
    return fitting, held_out
