"""Training: one function, its settings, and the folder it leaves."""

from contrastive_core.training.batches import batches, seeded_generator
from contrastive_core.training.callbacks import TrainingDivergedError
from contrastive_core.training.fit import FitResult, fit
from contrastive_core.training.run_folder import RunFolder
from contrastive_core.training.schedules import warmup_cosine
from contrastive_core.training.settings import TrainSettings

__all__ = [
    "FitResult",
    "RunFolder",
    "TrainSettings",
    "TrainingDivergedError",
    "batches",
    "fit",
    "seeded_generator",
    "warmup_cosine",
]
