"""Length and bookkeeping of a training from few pairs."""

import dataclasses

from contrastive_core.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class PairTraining(TrainSettings):
    """The settings of every training, with the defaults of the paper: 500 epochs, seed 42.

    They are defaults of fields, not of an instance: options on the command line replace fields one by one.

    Attributes:
        epochs: Passes over the training pairs; ignored when ``steps`` is given.
        seed: Seed of weights, prototypes, data order and draws.
        checkpoint_every: Steps between checkpoints; a killed run loses at most these.
    """

    epochs: int = 500
    seed: int = 42
    checkpoint_every: int = 250
