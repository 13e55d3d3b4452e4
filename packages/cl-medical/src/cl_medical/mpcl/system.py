"""How batches, network and objective meet in one training step: MPCL and the baselines it is compared with."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import lightning as L
import torch
from contrastive_core.cli import Flat
from contrastive_core.distributed import is_active, world_size
from contrastive_core.errors import ContrastiveWarning, require
from contrastive_core.nn import EMATeacher, sigmoid_rampup
from contrastive_core.training import TrainSettings, step_generator
from torch import Tensor

from cl_medical.mpcl.ihpg import Prototypes, ihpg, spread
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import (
    fuse,
    masked_mse,
    prototype_contrast,
    prototype_cross_entropy,
    pseudo_labels,
    supervised_loss,
)
from cl_medical.mpcl.presets import ObjectiveSettings
from cl_medical.volumes.plan import DataOptions
from cl_medical.volumes.splits import SplitSettings

Select = Literal["validation", "last", "test"]

COLLAPSED = 1e-3
"""Prototype spread below which a class's prototypes count as one."""


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
        require(0 < self.lr <= 1e3, "--optim.lr", self.lr, "a positive number, at most 1000")
        require(0 <= self.beta1 < 1, "--optim.beta1", self.beta1, "a decay in [0, 1)")
        require(0 <= self.beta2 < 1, "--optim.beta2", self.beta2, "a decay in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on besides its data.

    Attributes:
        objective: Method, preset and choices.
        volumes: How volumes are read and cut.
        split: Which cases train, validate and test.
        network: Architecture.
        optim: Optimiser.
        batch_size: Labelled patches a step, of all processes together. If absent: 2 where they have no more voxels than
            a patch of 96 96 96, else 1.
        ratio: Unlabelled patches for each labelled one.
        repeats: Patches of a labelled case in one epoch.
        cache: Share of the prepared volumes kept in memory, 0 to 1.
        workers: Loader processes.
        select: Keep the weights best on validation cases, the last, or (as published) the best on test cases.
        training: Length of the run and hardware.
    """

    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings()
    volumes: Annotated[DataOptions, Flat] = DataOptions()
    split: Annotated[SplitSettings, Flat] = SplitSettings()
    network: NetworkConfig = NetworkConfig()
    optim: OptimSettings = OptimSettings()
    batch_size: int | None = None
    ratio: int = 1
    repeats: int = 5
    cache: float = 1.0
    workers: int = 0
    select: Select = "validation"
    training: Annotated[TrainSettings, Flat] = TrainSettings(epochs=400)

    def __post_init__(self) -> None:
        size = self.batch_size
        require(size is None or 1 <= size <= 4096, "--batch-size", size, "1 to 4096")
        require(1 <= self.ratio <= 1024, "--ratio", self.ratio, "1 to 1024")
        require(1 <= self.repeats <= 10**6, "--repeats", self.repeats, "1 to 1000000")
        require(0 <= self.cache <= 1, "--cache", self.cache, "a share in [0, 1]")
        require(0 <= self.workers <= 512, "--workers", self.workers, "0 to 512")


class SegmentationSystem(L.LightningModule):
    """One training step of a method: student, teacher, prototypes.

    The student is trained on labelled patches; the teacher, its moving average, labels the unlabelled ones. In MPCL and
    UPCoL the student never sees an unlabelled image: it learns from them through prototypes and the teacher's features.
    Prototypes are those of all processes' patches.

    Args:
        network: The student.
        settings: Method and optimiser.
        validate: Dice of one validation case, by its index, with the student as it is.
    """

    running_centers: Tensor
    running_intensity: Tensor
    running_share: Tensor
    running_present: Tensor

    def __init__(self, network: VNet, settings: Settings, validate: Callable[[VNet, int], float] | None = None) -> None:
        super().__init__()
        self.network, self.settings, self.objective = network, settings, settings.objective
        self.choices, self.prototypes = self.objective.choices, self.objective.prototypes
        self.teacher = EMATeacher(network, self.objective.ema, warm=True)
        self._validate = validate
        shape = (network.classes, self.prototypes.k)
        self.register_buffer("running_centers", torch.zeros(*shape, network.config.feature_width))
        self.register_buffer("running_intensity", torch.zeros(shape))
        self.register_buffer("running_share", torch.zeros(shape))
        self.register_buffer("running_present", torch.zeros(shape[0], dtype=torch.bool))
        self._warned = False

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        """Loss of images [b 1 x y z], labels [b x y z], and which of them are labelled [b]."""
        images, labels, labelled = batch
        image, label, unlabelled = images[labelled], labels[labelled], images[~labelled]
        draw = step_generator(self, index)
        weight = sigmoid_rampup(self.global_step, self.objective.ramp * self.trainer.max_steps)
        output = self.network(image)
        terms = {"loss_sup": supervised_loss(output.heads.float(), label)}
        if self.objective.method in ("mpcl", "upcol"):
            terms |= self._prototype_terms(output.features, image, label, unlabelled, weight, draw)
        elif self.objective.method in ("mean-teacher", "ua-mt"):
            terms["loss_consistency"] = (
                weight * self.objective.consistency * self._consistency(unlabelled, weight, draw)
            )
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({name: value.detach() for name, value in terms.items()})
        self.log("ramp", weight)
        self.log("loss", loss, prog_bar=True)
        return loss

    def _prototype_terms(
        self, x6: Tensor, image: Tensor, label: Tensor, unlabelled: Tensor, weight: float, draw: torch.Generator
    ) -> dict[str, Tensor]:
        """PSO and DKA: fusion, contrast, and the cross-entropies of the prototype classifier."""
        s, chosen = self.objective, self.choices
        teacher = self.teacher(unlabelled)
        # Norms and distances need float32, whatever precision the network runs in.
        with torch.autocast(self.device.type, enabled=False):
            x6, features = x6.float(), teacher.features.float()
            with torch.no_grad():
                pseudo, trust = pseudo_labels(teacher.logits.float(), reliability=chosen.reliability)
            labelled = self._ihpg(x6, image, label, draw)
            with torch.no_grad():
                guessed = self._ihpg(features, unlabelled, pseudo, draw, trust)
            if chosen.match == "hungarian":
                guessed = guessed.matched(labelled)
            fused, present = fuse(labelled, guessed, weight, self.running(), masked=chosen.masked)
            known = prototype_cross_entropy(x6, fused, present, label, scale=s.scale)
            unknown = prototype_cross_entropy(features, fused, present, pseudo, scale=s.scale, weight=trust)
            if chosen.reliability == "sum":  # the published sum is over all images, its divisor the voxels of one
                unknown = unknown * len(unlabelled) * world_size()
            terms = {
                "loss_pc_labelled": s.alignment * known,
                "loss_pc_unlabelled": s.alignment * weight * unknown,
            }
            if chosen.contrast > 0:
                contrast = prototype_contrast(
                    labelled,
                    guessed,
                    temperature=s.temperature,
                    positives=s.positives,
                    self_negative=chosen.self_negative,
                    masked=chosen.masked,
                )
                terms["loss_contrast"] = chosen.contrast * weight * contrast
        self._remember(fused.detach(), present, labelled, guessed)
        self._log_spread(labelled)
        self.log("trust", trust.mean())
        return terms

    def _ihpg(
        self, x6: Tensor, image: Tensor, label: Tensor, draw: torch.Generator, reliability: Tensor | None = None
    ) -> Prototypes:
        return ihpg(
            x6,
            image,
            label,
            self.network.classes,
            self.prototypes,
            draw,
            reliability=reliability,
            sort=self.choices.match != "index",
            masked=self.choices.masked,
            gather=is_active(),
        )

    def _consistency(self, unlabelled: Tensor, weight: float, draw: torch.Generator) -> Tensor:
        """Mean Teacher's squared difference; UA-MT keeps voxels whose entropy over 8 noisy passes is low."""

        def noisy() -> Tensor:
            noise = torch.randn(unlabelled.shape, generator=draw).mul_(0.1).clamp_(-0.2, 0.2)
            return unlabelled + noise.to(unlabelled)

        student = self.network(noisy()).logits
        if self.objective.method == "mean-teacher":
            return masked_mse(student, self.teacher(noisy()).logits.softmax(1))
        passes = torch.stack([self.teacher(noisy()).logits.softmax(1) for _ in range(8)])
        mean = passes.mean(0)
        entropy = -(mean * (mean + 1e-6).log()).sum(1)
        highest = torch.log(entropy.new_tensor(float(mean.shape[1])))
        return masked_mse(student, passes[0], entropy < (0.75 + 0.25 * weight) * highest)

    def running(self) -> Prototypes:
        """Moving average of the fused prototypes, used for classes a step does not hold."""
        return Prototypes(self.running_centers, self.running_intensity, self.running_share, self.running_present)

    def _remember(self, fused: Tensor, present: Tensor, labelled: Prototypes, guessed: Prototypes) -> None:
        decay = self.objective.ema
        now = labelled.present | guessed.present if self.choices.masked else present
        intensity = torch.where(labelled.present[:, None], labelled.intensity, guessed.intensity)
        share = torch.where(labelled.present[:, None], labelled.share, guessed.share)
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
            published = self.prototypes.assignment == "official"
            warnings.warn(
                f"all prototypes of every class are the same at step {self.global_step + 1}: K > 1 has no effect"
                + (", as published; --assignment sharp keeps them apart" if published else ""),
                ContrastiveWarning,
                stacklevel=2,
            )

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        """Dice of the validation cases named by the batch; draws nothing."""
        if self._validate is None:
            return
        for case in batch[0].tolist():
            score = self._validate(self.network, int(case))
            self.log("val_dice", score, batch_size=1)
            self.log("val_loss", 1 - score, batch_size=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the teacher: here, and not in a hook, so that a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the student."""
        optim = self.settings.optim
        return torch.optim.Adam(self.network.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2))
