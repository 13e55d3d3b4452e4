"""Memories of embeddings: complete in ``state_dict``, the same on every process."""

from contrastive_core.memory.banks import InstanceBank, PrototypeBank
from contrastive_core.memory.queue import FeatureQueue, NeighbourSupport, QueueEntries
from contrastive_core.memory.reservoir import Reservoir

__all__ = ["FeatureQueue", "InstanceBank", "NeighbourSupport", "PrototypeBank", "QueueEntries", "Reservoir"]
