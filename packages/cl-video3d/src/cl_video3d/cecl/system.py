"""How clips, echoes, towers and objective meet in one training step."""

import dataclasses
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.memory import FeatureQueue
from contrastive_core.training import seeded_generator, warmup_cosine
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cl_video3d.cecl.model import EchoModel, EchoTower, ResidualTower
from cl_video3d.cecl.objective import Target, echo_loss, simclr_loss, view_loss
from cl_video3d.cecl.store import EchoSet
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
        for option, value in (("--temperature", self.temperature), ("--sigma", self.sigma)):
            if not 0 < value < float("inf"):
                raise InputError("the option is positive", where=option, why=f"got {value}")
        for option, value in (("--view-weight", self.view_weight), ("--queue", self.queue)):
            if not 0 <= value < float("inf"):
                raise InputError("the option is not negative", where=option, why=f"got {value}")
        if self.queue and (self.method != "cecl" or self.target not in ("soft", "hard")):
            raise InputError(
                "a queue holds embeddings of echoes",
                where="--queue",
                why=f"{self.method} with target {self.target} has none",
                remedy="use the target soft or hard",
            )

    @property
    def uses_residuals(self) -> bool:
        """Whether maps of what was lost are needed."""
        return self.method == "cecl" and (
            self.target == "echo-residual" or (self.echo in ("residual", "both") and self.has_tower)
        )

    @property
    def has_tower(self) -> bool:
        """Whether echoes are embedded."""
        return self.method == "cecl" and self.target in ("soft", "hard", "echo-residual")


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """AdamW with a one-cycle schedule: linear warm-up, then a cosine to zero.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices and kernels.
        warmup: Share of all steps spent warming up, in [0, 1).
    """

    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise InputError("the learning rate is positive", where="--optim.lr", why=f"got {self.lr}")
        if not 0 <= self.weight_decay < float("inf") or not 0 <= self.warmup < 1:
            raise InputError(
                "an option of the optimiser is out of range",
                where="--optim.weight-decay, --optim.warmup",
                why=f"got {self.weight_decay}, {self.warmup}",
            )


class EchoSystem(L.LightningModule):
    """Clips against their echoes, or a baseline.

    Args:
        model: Video tower and projection.
        echoes: The training clips at the operating points of the echo.
        objective: What is learned.
        optim: Optimiser.
        views: Size of the views.
        total_steps: Optimiser steps of the whole run.
        seed: Seed of the views, which depend on it and the step alone.
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        model: EchoModel,
        echoes: EchoSet,
        *,
        objective: ObjectiveSettings,
        optim: OptimSettings,
        views: ViewSettings,
        total_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.echoes = echoes
        self.objective, self.optim, self.views = objective, optim, views
        self.total_steps, self.seed = total_steps, seed
        # Which echoes are near is always told by the numbers; the tower may read maps instead.
        kind = objective.echo if objective.echo in ("extended", "rate", "quality") else "stats"
        values = torch.from_numpy(echoes.vectors(kind)).float()  # type: ignore[arg-type]
        self.register_buffer("center", values.mean(0), persistent=False)
        self.register_buffer("spread", values.std(0, correction=0).clamp_min(1e-6), persistent=False)
        self.values = values
        projection = model.config.projection
        residual_only = objective.target == "echo-residual" or objective.echo == "residual"
        self.tower = EchoTower(values.shape[1], projection) if objective.has_tower and not residual_only else None
        points = len(echoes.settings)
        self.residual_tower = ResidualTower(points, projection) if objective.uses_residuals else None
        self.queue = self.echo_queue = None
        if objective.queue:
            self.queue = FeatureQueue(projection, objective.queue)
            self.echo_queue = FeatureQueue(values.shape[1], objective.queue, normalize=False)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of clip numbers ``[b]`` and luma ``[b t h w]``."""
        rows, clips = batch
        loss = self.loss(rows, clips, seeded_generator(self.seed, self.global_step, batch_index))
        self.log("loss", loss, prog_bar=True)
        return loss

    def loss(
        self, rows: Int[Tensor, " b"], clips: UInt8[Tensor, "b t h w"], draw: torch.Generator
    ) -> Float[Tensor, ""]:
        """Loss of some training clips.

        Args:
            rows: Numbers of the clips.
            clips: Their luma.
            draw: Draws of the views.
        """
        if self.objective.method == "cecl":
            return self._echo_loss(rows, clips, draw)
        view = simclr_view if self.objective.method == "simclr" else echo_preserving_view
        first, second = (self.model(view(clips, self.views, draw).to(self.device)) for _ in range(2))
        return simclr_loss(first, second, temperature=self.objective.temperature)

    def _echo_loss(self, rows: Int[Tensor, " b"], clips: UInt8[Tensor, "b t h w"], draw: torch.Generator) -> Tensor:
        settings = self.objective
        echo = (self.values[rows.cpu()].to(self.center) - self.center) / self.spread
        z = self.model(echo_preserving_view(clips, self.views, draw).to(self.device))
        second = None
        if settings.target == "kernel-views" or settings.view_weight:
            second = self.model(echo_preserving_view(clips, self.views, draw).to(self.device))
        if settings.target == "kernel-views":
            assert second is not None
            partner = second
        elif settings.target == "pair":
            coded = self._compressed(rows, draw)
            partner = self.model(echo_preserving_view(coded, self.views, draw).to(self.device))
        else:
            partner = self._embedded_echo(rows, echo)
        queue = None
        if self.queue is not None and self.echo_queue is not None:
            queue = (self.queue.entries().features, self.echo_queue.entries().features)
        loss = echo_loss(
            z,
            partner,
            echo,
            target=settings.target,
            temperature=settings.temperature,
            sigma=settings.sigma,
            queue=queue,
        )
        if self.queue is not None and self.echo_queue is not None:
            self.queue.push(partner)
            self.echo_queue.push(echo)
        if settings.view_weight:
            assert second is not None
            loss = loss + settings.view_weight * view_loss(z, second, temperature=settings.temperature)
        return loss

    def _embedded_echo(self, rows: Tensor, echo: Float[Tensor, "b e"]) -> Float[Tensor, "b d"]:
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
        """AdamW over two groups; warm-up, cosine."""
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.optim.lr)
        warmup = round(self.optim.warmup * self.total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(min(step, self.total_steps) + 1, self.total_steps + 1, warmup + 1)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
