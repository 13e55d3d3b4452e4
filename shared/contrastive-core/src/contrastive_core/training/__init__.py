"""Training: one function, its settings, and the folder it leaves."""

from contrastive_core.data.samplers import seeded_generator
from contrastive_core.training.batches import batches, step_generator
from contrastive_core.training.callbacks import TrainingDivergedError
from contrastive_core.training.fit import FitResult, fit
from contrastive_core.training.optim import OptimSettings, adamw, decay_groups, with_schedule
from contrastive_core.training.run_folder import RunFolder
from contrastive_core.training.schedules import warmup_cosine
from contrastive_core.training.settings import TrainSettings

__all__ = [
    "FitResult",
    "OptimSettings",
    "RunFolder",
    "TrainSettings",
    "TrainingDivergedError",
    "adamw",
    "batches",
    "decay_groups",
    "fit",
    "seeded_generator",
    "step_generator",
    "warmup_cosine",
    "with_schedule",
]
