"""How clips, echoes, towers and objective meet in one training step."""

import dataclasses
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active
from contrastive_core.errors import InputError, require
from contrastive_core.memory import FeatureQueue
from contrastive_core.training import OptimSettings, TrainSettings, adamw, step_generator
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.model import EchoModel, EchoTower, ModelConfig, ResidualTower
from cl_video3d.cecl.objective import Target, echo_loss, simclr_loss, view_loss
from cl_video3d.cecl.views import ViewSettings, echo_preserving_view, simclr_view
from cl_video3d.video.encoding import encode
from cl_video3d.video.reading import luma

Method = Literal["cecl", "simclr", "instance"]
Echo = Literal["stats", "extended", "residual", "both", "rate", "quality"]


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """What is learned.

    Attributes:
        method: ``cecl``, or a baseline with the same network: ``simclr`` (its own augmentations, no echo) or
            ``instance`` (instance discrimination of echo-preserving views, no echo).
        target: ``soft``, ``hard``, ``kernel-views``, ``echo-residual``, or ``pair`` (an ablation: the compressed clip
            as the positive rewards being blind to compression).
        echo: ``stats`` (rates and qualities), ``extended`` (with their spread and frame types), ``residual`` (maps of
            what was lost), ``both`` (stats and residual), or ``rate``, ``quality``.
        temperature: Temperature of all softmaxes.
        sigma: Width of soft targets, in standard deviations of the echo.
        view_weight: Weight of InfoNCE between two echo-preserving views beside the echo.
        queue: Echo embeddings of earlier batches kept as further negatives, for small batches; 0 for none.
    """

    method: Method = "cecl"
    target: Target = "soft"
    echo: Echo = "stats"
    temperature: float = 0.1
    sigma: float = 0.5
    view_weight: float = 0.0
    queue: int = 0

    def __post_init__(self) -> None:
        require(1e-4 <= self.temperature <= 1e4, "--temperature", self.temperature, "a number from 0.0001 to 10000")
        require(1e-4 <= self.sigma <= 1e4, "--sigma", self.sigma, "a number from 0.0001 to 10000")
        require(0 <= self.view_weight <= 1e4, "--view-weight", self.view_weight, "a number from 0 to 10000")
        require(0 <= self.queue <= 10**6, "--queue", self.queue, "a whole number from 0 to 1000000")
        if self.queue and (self.method != "cecl" or self.target not in ("soft", "hard")):
            raise InputError(
                "a queue holds embeddings of echoes",
                where="--queue",
                why=f"{self.method} with target {self.target} has none",
                remedy="use the target soft or hard",
            )

    @property
    def has_tower(self) -> bool:
        """Whether echoes are embedded."""
        return self.method == "cecl" and self.target in ("soft", "hard", "echo-residual")

    @property
    def needs_numbers(self) -> bool:
        """Whether the tower of echo vectors is needed."""
        return self.has_tower and self.target != "echo-residual" and self.echo != "residual"

    @property
    def needs_residuals(self) -> bool:
        """Whether maps of what was lost are needed."""
        return self.has_tower and (self.target == "echo-residual" or self.echo in ("residual", "both"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides over a training run besides its clips.

    Attributes:
        model: Architecture.
        objective: What is learned.
        optim: Optimiser.
        views: Size of the views.
        batch_size: Clips of a batch, at most all.
        training: Length of the run, seed, hardware.
    """

    model: Annotated[ModelConfig, Flat] = ModelConfig()
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    optim: OptimSettings = OptimSettings(lr=2e-3, weight_decay=1e-4, warmup=0.3)
    views: ViewSettings = ViewSettings()
    batch_size: int = 64
    training: Annotated[TrainSettings, Flat] = TrainSettings(epochs=15)

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "--batch-size", self.batch_size, "at least two clips: they are contrasted")


class EchoSystem(L.LightningModule):
    """Clips against their echoes, or a baseline.

    Args:
        model: Video tower and projection.
        echoes: The training clips at the operating points of the echo.
        settings: What is learned, and how.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, model: EchoModel, echoes: EchoSet, settings: Settings) -> None:
        super().__init__()
        self.model, self.echoes, self.settings = model, echoes, settings
        objective, projection = settings.objective, model.config.projection
        # Which echoes are near is always told by the numbers; the tower may read maps instead.
        kind = objective.echo if objective.echo in ("extended", "rate", "quality") else "stats"
        self.values = torch.from_numpy(echoes.vectors(kind)).float()
        self.register_buffer("center", self.values.mean(0), persistent=False)
        self.register_buffer("spread", self.values.std(0, correction=0).clamp_min(1e-6), persistent=False)
        width = self.values.shape[1]
        self.tower = EchoTower(width, projection) if objective.needs_numbers else None
        self.residual_tower = ResidualTower(len(echoes.settings), projection) if objective.needs_residuals else None
        self.queue = FeatureQueue(projection, objective.queue) if objective.queue else None
        self.echo_queue = FeatureQueue(width, objective.queue, normalize=False) if objective.queue else None

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of one batch of clip numbers ``[b]`` and luma ``[b t h w]``."""
        rows, clips = batch
        terms = self.losses(rows, clips, step_generator(self, index))
        loss = torch.stack(list(terms.values())).sum()
        self.log("loss", loss, prog_bar=True)
        if len(terms) > 1:
            self.log_dict({f"loss_{name}": term for name, term in terms.items()})
        return loss

    def losses(
        self, rows: Int[Tensor, " b"], clips: UInt8[Tensor, "b t h w"], draw: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms of the loss of some training clips, weighted.

        Args:
            rows: Numbers of the clips.
            clips: Their luma.
            draw: Draws of the views.
        """
        objective, gather = self.settings.objective, is_active()
        if objective.method == "simclr":
            pair = [self.model(simclr_view(clips, self.settings.views, draw).to(self.device)) for _ in range(2)]
            return {"simclr": simclr_loss(*pair, temperature=objective.temperature, gather=gather)}
        z = self._view(clips, draw)
        if objective.method == "instance":
            second = self._view(clips, draw)
            return {"instance": simclr_loss(z, second, temperature=objective.temperature, gather=gather)}
        twice = objective.target == "kernel-views" or objective.view_weight > 0
        second = self._view(clips, draw) if twice else z
        terms = {"echo": self._against_echo(z, second, rows, draw, gather=gather)}
        if objective.view_weight:
            between = view_loss(z, second, temperature=objective.temperature, gather=gather)
            terms["views"] = objective.view_weight * between
        return terms

    def _against_echo(
        self, z: Tensor, second: Tensor, rows: Int[Tensor, " b"], draw: torch.Generator, *, gather: bool
    ) -> Tensor:
        """Clips against echoes, second views, or what the codec made of the clips."""
        objective = self.settings.objective
        echo = (self.values[rows.cpu()].to(self.center) - self.center) / self.spread
        if objective.target == "kernel-views":
            partner = second
        elif objective.target == "pair":
            partner = self._view(self._compressed(rows, draw), draw)
        else:
            partner = self._embedded_echo(rows, echo)
        queue = None
        if self.queue is not None and self.echo_queue is not None:
            queue = (self.queue.entries().features, self.echo_queue.entries().features)
            self.queue.push(partner)
            self.echo_queue.push(echo)
        return echo_loss(
            z,
            partner,
            echo,
            target=objective.target,
            temperature=objective.temperature,
            sigma=objective.sigma,
            queue=queue,
            gather=gather,
        )

    def _view(self, clips: UInt8[Tensor, "b t h w"], draw: torch.Generator) -> Float[Tensor, "b p"]:
        return self.model(echo_preserving_view(clips, self.settings.views, draw).to(self.device))

    def _embedded_echo(self, rows: Tensor, echo: Float[Tensor, "b e"]) -> Float[Tensor, "b p"]:
        parts = []
        if self.tower is not None:
            parts.append(self.tower(echo))
        if self.residual_tower is not None:
            maps = torch.from_numpy(self.echoes.residuals(rows.cpu().numpy()))
            parts.append(self.residual_tower(maps.to(self.device)))
        return torch.stack(parts).sum(0)

    def _compressed(self, rows: Tensor, draw: torch.Generator) -> UInt8[Tensor, "b t h w"]:
        """The clips after one operating point each, drawn at random."""
        frames = self.echoes.pixels(rows.cpu().numpy())
        picks = torch.randint(len(self.echoes.settings), (len(frames),), generator=draw).tolist()
        coded = [encode(clip, self.echoes.settings[pick]).frames for clip, pick in zip(frames, picks, strict=True)]
        return torch.from_numpy(np.ascontiguousarray(luma(np.stack(coded))))

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up, cosine."""
        return adamw(self, self.settings.optim)
