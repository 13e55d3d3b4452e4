"""Slots that follow their items or classes by exponential moving average."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather
from contrastive_core.memory.rows import check_groups, check_momentum, group_means, move_towards


class InstanceBank(nn.Module):
    """One slot a training item (InstDisc; Wu et al., 2018).

    Under ``torch.distributed`` the rows of all processes enter; several rows of one item count as their mean.

    Args:
        count: Items.
        dim: Width of an embedding.
        momentum: Share of the old value that stays.
        normalize: Keep slots at unit length.

    Raises:
        ValueError: A momentum outside [0, 1].
    """

    slots: Tensor
    counts: Tensor

    def __init__(self, count: int, dim: int, *, momentum: float = 0.5, normalize: bool = True) -> None:
        super().__init__()
        check_momentum(momentum)
        self.momentum, self.normalize = momentum, normalize
        self.register_buffer("slots", torch.zeros(count, dim))
        self.register_buffer("counts", torch.zeros(count, dtype=torch.long))

    @torch.no_grad()
    def update(self, ids: Int[Tensor, " b"], features: Float[Tensor, "b d"]) -> None:
        """Move the slots of some items towards their new embeddings.

        Args:
            ids: Items, 0..count-1.
            features: Their embeddings, any norm.

        Raises:
            ValueError: An id is out of range.
        """
        rows, items = _gathered(features, ids, self.normalize)
        check_groups(items, len(self.slots), "ids")
        touched, place = items.unique(return_inverse=True)
        means, numbers = group_means(rows, place, len(touched))
        slots, counts = self.slots[touched], self.counts[touched]
        move_towards(slots, counts, means, numbers, self.momentum, self.normalize)
        self.slots[touched], self.counts[touched] = slots, counts

    def forward(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Slots of some items; zero for those not seen yet."""
        return self.slots[ids]

    @property
    def seen(self) -> Bool[Tensor, " n"]:
        """Items that have been updated."""
        return self.counts > 0


class PrototypeBank(nn.Module):
    """Class prototypes by exponential moving average, one or several a class.

    An update gathers the rows of all processes, takes one mean a prototype, and makes one EMA step. So it does not
    depend on the order of rows or the number of processes; classes without rows stay as they are.

    Args:
        classes: Classes C.
        dim: Width D.
        per_class: Prototypes a class, K. Rows go to the nearest one of their class by cosine, as it was before the
            update. While a class has prototypes without rows, the row least like those it has starts the next.
        momentum: Share of the old value that stays.
        normalize: Keep prototypes at unit length.

    Attributes:
        prototypes: ``[C K D]``, zero where nothing was seen.
        counts: Rows each prototype has seen ``[C K]``.

    Raises:
        ValueError: A momentum outside [0, 1], or ``per_class`` below 1.

    Example:
        >>> bank = PrototypeBank(2, 2)
        >>> bank.update(torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([1, 1]))
        >>> bank.prototypes[:, 0]
        tensor([[0., 0.],
                [1., 0.]])
    """

    prototypes: Tensor
    counts: Tensor

    def __init__(
        self, classes: int, dim: int, *, per_class: int = 1, momentum: float = 0.99, normalize: bool = True
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        if per_class < 1:
            raise ValueError(f"a class has at least one prototype, got {per_class}")
        self.momentum, self.normalize = momentum, normalize
        self.register_buffer("prototypes", torch.zeros(classes, per_class, dim))
        self.register_buffer("counts", torch.zeros(classes, per_class, dtype=torch.long))

    @torch.no_grad()
    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> None:
        """Move the prototypes of the batch's classes.

        Args:
            features: Embeddings, any norm.
            labels: Their classes, 0..C-1.

        Raises:
            ValueError: A label is out of range.
        """
        rows, targets = _gathered(features, labels, self.normalize)
        check_groups(targets, len(self.prototypes), "labels")
        per_class = self.prototypes.shape[1]
        groups = targets * per_class + (0 if per_class == 1 else self._nearest(rows, targets))
        means, numbers = group_means(rows, groups, self.counts.numel())
        slots, counts = self.prototypes.flatten(0, 1), self.counts.flatten()
        move_towards(slots, counts, means, numbers, self.momentum, self.normalize)

    def _nearest(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Prototype, within the class, of each row."""
        out = torch.zeros_like(targets)
        for label in targets.unique().tolist():
            mine = targets == label
            unit = F.normalize(rows[mine].double(), dim=1)
            centers, slots = self._centers(unit, label)
            out[mine] = slots[(unit @ centers.T).argmax(1)]
        return out

    def _centers(self, unit: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """What rows of a class are compared with: its prototypes, and rows that start the ones it lacks."""
        used = (self.counts[label] > 0).nonzero()[:, 0]
        centers = F.normalize(self.prototypes[label][used].double(), dim=1)
        free = (self.counts[label] == 0).nonzero()[:, 0].tolist()
        slots = used.tolist()
        for slot in free:
            if not slots:
                start = int((unit @ F.normalize(unit.mean(0), dim=0)).argmax())
            else:
                likeness = (unit @ centers.T).amax(1)
                start = int(likeness.argmin())
                if float(likeness[start]) > 1 - 1e-9:  # nothing new in these rows
                    break
            centers = torch.cat([centers, unit[start : start + 1]])
            slots.append(slot)
        return centers, torch.tensor(slots, device=unit.device)

    def forward(self) -> Float[Tensor, "c k d"]:
        """The prototypes."""
        return self.prototypes

    @property
    def seen(self) -> Bool[Tensor, "c k"]:
        """Prototypes that have had rows."""
        return self.counts > 0


def _gathered(features: Tensor, groups: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    rows = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    return gather(F.normalize(rows, dim=1) if normalize else rows), gather(groups)
