"""How batches, network and objective meet in one training step: MPCL and the baselines it is compared with."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.nn import EMATeacher, sigmoid_rampup
from contrastive_core.nn.prototypes import Gradient
from contrastive_core.training import seeded_generator
from torch import Tensor

from cl_medical.mpcl.ihpg import Assignment, Prototypes, PrototypeSettings, Seeding, ihpg, spread
from cl_medical.mpcl.model import VNet
from cl_medical.mpcl.objective import (
    Positives,
    fuse,
    masked_mse,
    prototype_contrast,
    prototype_cross_entropy,
    pseudo_labels,
    supervised_loss,
)

Method = Literal["mpcl", "upcol", "mean-teacher", "ua-mt", "sup"]
Preset = Literal["corrected", "paper-code"]
Reliability = Literal["log-c", "sum"]
Match = Literal["intensity", "hungarian", "index"]

COLLAPSED = 1e-3
"""Prototype spread below which a class's prototypes count as one."""


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """What the presets set; what is given wins over the preset.

    Attributes:
        k: Prototypes of a class.
        assignment: sharp or official soft k-means.
        gradient: Of prototypes: means (assignments are constants) or iterations (through all of k-means).
        seeding: Where k-means starts: intensity (histogram peaks), random, or k-means (features far apart).
        match: How labelled and unlabelled prototypes correspond: intensity, hungarian (cosine), or index.
        reliability: log-c or sum.
        self_negative: Keep the self-similarity in the contrast's denominator.
        masked: Leave classes out that a patch does not hold.
        max_voxels: Voxels of a class in k-means, 0 for all.
        positives: class or same-index.
        scale: Factor on the cosines of the prototype classifier, 1 as published.
        contrast: Weight of the contrast between prototypes; 0 leaves it out.
        alignment: Weight of the prototype classifier's cross-entropies; 0 leaves them out.
        bins: Bins of the intensity histogram.
        gap: Smallest distance of two seeds on the intensity axis, 0 to 1.
        iterations: Soft k-means iterations.
        spatial_weight: Weight of coordinates in k-means.
        temperature: Temperature of the contrast.
        ramp: Share of the run over which unlabelled terms rise to their full weight.
        ema: Decay of the teacher.
        consistency: Largest weight of the consistency term of mean-teacher and ua-mt.
    """

    k: int | None = None
    assignment: Assignment | None = None
    gradient: Gradient | None = None
    seeding: Seeding | None = None
    match: Match | None = None
    reliability: Reliability | None = None
    self_negative: bool | None = None
    masked: bool | None = None
    max_voxels: int | None = None
    positives: Positives | None = None
    scale: float | None = None
    contrast: float | None = None
    alignment: float | None = None
    bins: int | None = None
    gap: float | None = None
    iterations: int | None = None
    spatial_weight: float | None = None
    temperature: float | None = None
    ramp: float | None = None
    ema: float | None = None
    consistency: float | None = None


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """A method with every choice made.

    Attributes:
        method: mpcl, upcol (one prototype, no contrast), mean-teacher, ua-mt, or sup.
        prototypes: How prototypes are found.
        match: ``intensity`` orders each class's prototypes before fusing; ``hungarian`` pairs them by cosine; ``index``
            leaves them by rank of their peak.
        reliability: Trust in pseudo-labels.
        self_negative: Self-similarity in the contrast's denominator.
        masked: Leave out classes a patch does not hold; else they enter as zeros.
        positives: Positives of the contrast.
        scale: Factor on the cosines of the prototype classifier.
        contrast: Weight of the contrast between prototypes.
        alignment: Weight of the prototype classifier's cross-entropies.
        temperature: τ of the contrast.
        ramp: Share of the run over which the weight of unlabelled terms rises to 1.
        ema: Decay of the teacher.
        consistency: Largest weight of the consistency term of mean-teacher and ua-mt.
    """

    method: Method = "mpcl"
    prototypes: PrototypeSettings = PrototypeSettings()  # noqa: RUF009 - frozen
    match: Match = "intensity"
    reliability: Reliability = "log-c"
    self_negative: bool = False
    masked: bool = True
    positives: Positives = "class"
    scale: float = 1.0
    contrast: float = 1.0
    alignment: float = 1.0
    temperature: float = 0.1
    ramp: float = 0.75
    ema: float = 0.99
    consistency: float = 0.1

    def __post_init__(self) -> None:
        for option, value, good in (
            ("--scale", self.scale, 0 < self.scale < float("inf")),
            ("--contrast", self.contrast, 0 <= self.contrast < float("inf")),
            ("--alignment", self.alignment, 0 <= self.alignment < float("inf")),
            ("--consistency", self.consistency, 0 <= self.consistency < float("inf")),
            ("--temperature", self.temperature, 0 < self.temperature < float("inf")),
            ("--ramp", self.ramp, 0 < self.ramp <= 1),
            ("--ema", self.ema, 0 <= self.ema < 1),
        ):
            if not good:
                raise InputError("a setting of the method is out of range", where=option, why=f"got {value}")

    @property
    def uses_unlabelled(self) -> bool:
        """Whether unlabelled volumes are looked at."""
        return self.method != "sup"


def resolve_method(method: Method, preset: Preset, options: MethodOptions = MethodOptions()) -> MethodSettings:
    """Settings of a method under a preset.

    Args:
        method: The method.
        preset: ``corrected``, or ``paper-code`` with every behaviour of the published code.
        options: Single choices that win over the preset.
    """
    published = preset == "paper-code"
    values: dict[str, Any] = {
        "k": 1 if method == "upcol" else 3,
        "assignment": "official" if published else "sharp",
        "gradient": "iterations" if published else "means",
        "match": "index" if published else "intensity",
        "reliability": "sum" if published else "log-c",
        "self_negative": published,
        "masked": not published,
        "max_voxels": 0 if published else PrototypeSettings.max_voxels,
        "positives": "class",
        "scale": 1.0,
        "contrast": 0.0 if method == "upcol" else 1.0,
    }
    values |= {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    if method == "upcol" and (values["k"] != 1 or values["contrast"] != 0):
        raise InputError(
            "upcol has one prototype a class and no contrast", where="--k, --contrast", remedy="use --method mpcl"
        )
    names = {field.name for field in dataclasses.fields(PrototypeSettings)} & set(values)
    prototypes = PrototypeSettings(**{name: values.pop(name) for name in names})
    return MethodSettings(method, prototypes, **values)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """Adam with a constant learning rate.

    Attributes:
        lr: Learning rate.
        beta1: Decay of the gradient's mean.
        beta2: Decay of its square.
    """

    lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise InputError("the learning rate must be positive", where="--optim.lr", why=f"got {self.lr}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(
                "Adam's decays lie in [0, 1)", where="--optim.beta1, --optim.beta2", why=f"{self.beta1}, {self.beta2}"
            )


class SegmentationSystem(L.LightningModule):
    """One training step of a method: student, teacher, prototypes.

    The student is trained on labelled patches; the teacher, its moving average, labels the unlabelled ones. In MPCL and
    UPCoL the student never sees an unlabelled image: it learns from them through prototypes and the teacher's features.

    Args:
        network: The student.
        settings: The method.
        optim: Optimiser.
        total_steps: Optimiser steps of the whole run, for the ramp-up.
        seed: Seed of draws; those of a step depend on the seed and the step alone.
        validate: Dice of one validation case, by its index, with the student as it is.
    """

    running_centers: Tensor
    running_intensity: Tensor
    running_share: Tensor
    running_present: Tensor

    def __init__(
        self,
        network: VNet,
        settings: MethodSettings,
        *,
        optim: OptimSettings,
        total_steps: int,
        seed: int,
        validate: Callable[[VNet, int], float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.teacher = EMATeacher(network, settings.ema, warm=True)
        self.settings, self.optim = settings, optim
        self.total_steps, self.seed = total_steps, seed
        self._validate = validate
        shape = (network.classes, settings.prototypes.k)
        self.register_buffer("running_centers", torch.zeros(*shape, network.config.feature_width))
        self.register_buffer("running_intensity", torch.zeros(shape))
        self.register_buffer("running_share", torch.zeros(shape))
        self.register_buffer("running_present", torch.zeros(shape[0], dtype=torch.bool))
        self._warned = False

    def training_step(self, batch: Sequence[Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of labelled patches and the unlabelled ones that go with them."""
        image, label, unlabelled = batch[0], batch[1], batch[2].flatten(0, 1)
        draw = seeded_generator(self.seed, 4, self.global_step, batch_index)
        output = self.network(image)
        parts = {"loss_sup": supervised_loss(output.heads.float(), label)}
        weight = sigmoid_rampup(self.global_step, self.settings.ramp * self.total_steps)
        if self.settings.method in ("mpcl", "upcol"):
            parts |= self._prototype_terms(output.features, image, label, unlabelled, weight, draw)
        elif self.settings.method in ("mean-teacher", "ua-mt"):
            parts["loss_consistency"] = weight * self.settings.consistency * self._consistency(unlabelled, weight, draw)
        loss = torch.stack(list(parts.values())).sum()
        self.log_dict({name: value.detach() for name, value in parts.items()})
        self.log("loss", loss, prog_bar=True)
        return loss

    def _prototype_terms(
        self, x6: Tensor, image: Tensor, label: Tensor, unlabelled: Tensor, weight: float, draw: torch.Generator
    ) -> dict[str, Tensor]:
        """PSO and DKA: fusion, contrast, and the cross-entropies of the prototype classifier."""
        s, classes = self.settings, self.network.classes
        sort = s.match != "index"
        with torch.no_grad():
            taught = self.teacher(unlabelled)
        # Norms and distances need float32, whatever precision the network runs in.
        with torch.autocast(self.device.type, enabled=False):
            mine, other = x6.float(), taught.features.float()
            ours = ihpg(mine, image, label, classes, s.prototypes, draw, sort=sort)
            with torch.no_grad():
                pseudo, trust = pseudo_labels(taught.logits.float(), reliability=s.reliability)
                theirs = ihpg(other, unlabelled, pseudo, classes, s.prototypes, draw, reliability=trust, sort=sort)
                theirs = theirs.matched(ours) if s.match == "hungarian" else theirs
            fused, present = fuse(ours, theirs, weight, self.running(), masked=s.masked)
            known = prototype_cross_entropy(mine, fused, present, label, scale=s.scale)
            guessed = prototype_cross_entropy(other, fused, present, pseudo, scale=s.scale, weight=trust)
            parts = {
                "loss_pc_labelled": s.alignment * known,
                "loss_pc_unlabelled": s.alignment * weight * guessed,
            }
            if s.contrast > 0:
                parts["loss_contrast"] = (
                    s.contrast
                    * weight
                    * prototype_contrast(
                        ours,
                        theirs,
                        temperature=s.temperature,
                        positives=s.positives,
                        self_negative=s.self_negative,
                        masked=s.masked,
                    )
                )
        self._remember(fused.detach(), present, ours, theirs)
        self._log_spread(ours)
        self.log("trust", trust.mean())
        return parts

    def _consistency(self, unlabelled: Tensor, weight: float, draw: torch.Generator) -> Tensor:
        """Mean Teacher's squared difference; UA-MT keeps voxels whose entropy over 8 noisy passes is low."""

        def noisy() -> Tensor:
            noise = torch.randn(unlabelled.shape, generator=draw).mul_(0.1).clamp_(-0.2, 0.2)
            return unlabelled + noise.to(unlabelled)

        passes = 8 if self.settings.method == "ua-mt" else 1
        student = self.network(noisy()).logits
        with torch.no_grad():
            taught = [self.teacher(noisy()).logits.softmax(1) for _ in range(passes)]
            mean = torch.stack(taught).mean(0)
            mask = None
            if self.settings.method == "ua-mt":
                entropy = -(mean * (mean + 1e-6).log()).sum(1)
                highest = torch.log(entropy.new_tensor(float(mean.shape[1])))
                mask = entropy < (0.75 + 0.25 * weight) * highest
        return masked_mse(student, taught[0], mask)

    def running(self) -> Prototypes:
        """Moving average of the fused prototypes, used for classes a step does not hold."""
        return Prototypes(self.running_centers, self.running_intensity, self.running_share, self.running_present)

    def _remember(self, fused: Tensor, present: Tensor, ours: Prototypes, theirs: Prototypes) -> None:
        decay = self.settings.ema
        now = ours.present | theirs.present if self.settings.masked else present
        intensity = torch.where(ours.present[:, None], ours.intensity, theirs.intensity)
        share = torch.where(ours.present[:, None], ours.share, theirs.share)
        for buffer, value in (
            (self.running_centers, fused),
            (self.running_intensity, intensity),
            (self.running_share, share),
        ):
            old = self.running_present.view(-1, *[1] * (value.ndim - 1))
            seen = now.view(-1, *[1] * (value.ndim - 1))
            mixed = torch.where(old, decay * buffer + (1 - decay) * value, value)
            # A new tensor: the old one may be part of this step's graph.
            buffer.data = torch.where(seen, mixed, buffer)
        self.running_present.data = self.running_present | now

    def _log_spread(self, prototypes: Prototypes) -> None:
        if prototypes.centers.shape[1] == 1:
            return
        values = spread(prototypes.centers.detach())
        for index, value in enumerate(values):
            if prototypes.present[index]:
                self.log(f"spread_{index}", value)
        here = values[prototypes.present]
        if len(here) and float(here.max()) < COLLAPSED and not self._warned:
            self._warned = True
            published = self.settings.prototypes.assignment == "official"
            warnings.warn(
                f"all prototypes of every class are the same at step {self.global_step}: K > 1 has no effect"
                + (", as published; --assignment sharp keeps them apart" if published else ""),
                ContrastiveWarning,
                stacklevel=2,
            )

    def validation_step(self, batch: Sequence[Tensor], batch_index: int) -> None:
        """Dice of the validation cases named by the batch."""
        assert self._validate is not None
        for index in batch[0].tolist():
            score = self._validate(self.network, int(index))
            self.log("val_dice", score, batch_size=1)
            self.log("val_loss", 1 - score, batch_size=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the teacher: here, and not in a hook, so that a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the student."""
        return torch.optim.Adam(self.network.parameters(), lr=self.optim.lr, betas=(self.optim.beta1, self.optim.beta2))
