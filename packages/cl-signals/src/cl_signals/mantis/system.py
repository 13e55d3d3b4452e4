"""How batches, model and objective meet in one training step: pre-training and fine-tuning."""

import dataclasses
from typing import Annotated, Any, Literal

import lightning as L
import torch.nn.functional as F
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError, require
from contrastive_core.training import OptimSettings, TrainSettings, adamw, step_generator
from jaxtyping import Float
from torch import Tensor, nn

from cl_signals.mantis.model import Mantis, Preset, Token
from cl_signals.mantis.objective import mantis_contrastive
from cl_signals.mantis.views import ViewSettings, random_crop_resize

Mode = Literal["head", "adapter-head", "full", "scratch"]


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """How an encoder is pre-trained.

    Attributes:
        preset: Architecture: v1, v2 or tiny.
        temperature: Softmax temperature of the objective, positive.
        batch_size: Series in a batch; the others of a batch are a series' negatives.
        optim: Optimiser; the published code lets all parameters decay.
        views: Augmentation.
        training: Length of the run and hardware.
    """

    preset: Preset = "v2"
    temperature: float = 0.1
    batch_size: int = 512
    optim: OptimSettings = OptimSettings(lr=2e-3, weight_decay=0.05, decay="all")
    views: ViewSettings = ViewSettings()
    training: Annotated[TrainSettings, Flat] = TrainSettings()

    def __post_init__(self) -> None:
        require(0 < self.temperature < float("inf"), "--temperature", self.temperature, "a positive number")
        require(self.batch_size >= 2, "--batch-size", self.batch_size, "at least 2: a series needs a negative")


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """What is trained, and on which view of the encoder.

    Attributes:
        mode: ``head`` fits logistic regression on embeddings computed once; ``adapter-head`` trains a channel combiner
            with a head through the frozen encoder; ``full`` trains everything from the given encoder; ``scratch``
            trains everything from random weights. All but ``head`` train by gradients, as the options below say.
        preset: Architecture of mode scratch.
        adapter: Channel adapter before the encoder: ``none``, ``pca:D``, ``svd:D``, ``rand:D``, ``variance:D`` or, with
            ``adapter-head``, ``linear:D``, where D is the number of channels kept.
        layer: Encoder layer read out, -1 for the last.
        token: Token read out.
        length: Length every series is resized to.
        calibrate: Share of the training set held out to fit a softmax temperature, 0 for none.
        batch_size: Series in a training batch.
        optim: Optimiser.
        training: Length of the run and hardware.
    """

    mode: Mode = "head"
    preset: Preset = "v2"
    adapter: str = "none"
    layer: int = -1
    token: Token = "combined"
    length: int = 512
    calibrate: float = 0.0
    batch_size: int = 256
    optim: OptimSettings = OptimSettings(lr=2e-4, weight_decay=0.05, decay="all")
    training: Annotated[TrainSettings, Flat] = TrainSettings(steps=1000)

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "--batch-size", self.batch_size, "at least 2, for the batch normalisation")
        require(0 <= self.calibrate < 0.9, "--calibrate", self.calibrate, "a share in [0, 0.9)")
        require(2 <= self.length <= 10**6, "--length", self.length, "a length from 2 to a million")
        if self.adapter.startswith("linear") != (self.mode == "adapter-head"):
            raise InputError(
                "a trainable adapter and the mode adapter-head go together",
                where="--adapter",
                why=f"mode {self.mode} with adapter {self.adapter}",
                remedy="use --mode adapter-head --adapter linear:D, or a fitted adapter with another mode",
            )


class PretrainSystem(L.LightningModule):
    """Contrastive pre-training: two crops of every series, one encoder, InfoNCE in one direction."""

    def __init__(self, model: Mantis, settings: PretrainSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def training_step(self, batch: list[Float[Tensor, "b 1 t"]], index: int) -> Tensor:
        """Loss of one batch of series."""
        (series,) = batch
        draw = step_generator(self, index)
        query, key = (self.model.project(random_crop_resize(series, self.settings.views, draw)) for _ in range(2))
        loss = mantis_contrastive(query, key, temperature=self.settings.temperature, gather=is_active())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up, cosine."""
        return adamw(self, self.settings.optim)


class ClassifierSystem(L.LightningModule):
    """Cross-entropy training of a classifier, with or without its encoder.

    Args:
        network: Maps series ``[b c t]`` to class logits ``[b k]``.
        optim: Optimiser.
        frozen: Part of the network that stays in eval mode (and without gradients) while the rest is trained.
    """

    def __init__(self, network: nn.Module, optim: OptimSettings, *, frozen: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.optim = network, optim
        self._frozen = [frozen] if frozen is not None else []  # in a list: it is already part of the network
        for part in self._frozen:
            part.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Keep the frozen part free of dropout noise."""
        for part in self._frozen:
            part.eval()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Cross-entropy of one batch."""
        x, labels = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over what is trainable, warm-up, cosine."""
        return adamw(self, self.optim)
