"""A uniform sample of everything seen."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive_core.distributed import gather


class Reservoir(nn.Module):
    """A uniform random sample of all rows seen so far (Vitter, 1985, algorithm R).

    The draw of row t depends on the seed and t alone: how rows are cut into batches changes nothing, and the count
    of rows is all the state the generator needs. Under ``torch.distributed`` the rows of all processes enter, in rank
    order.

    Args:
        dim: Width of a row.
        size: Rows it holds.
        seed: Seed of the draws.

    Raises:
        ValueError: A size or width below 1.

    Example:
        >>> reservoir = Reservoir(1, 3)
        >>> reservoir.push(torch.arange(2.0)[:, None])
        >>> reservoir.rows()[:, 0]
        tensor([0., 1.])
    """

    features: Tensor
    labels: Tensor
    seen: Tensor

    def __init__(self, dim: int, size: int, *, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or size < 1:
            raise ValueError(f"a reservoir has a width and a size of at least 1, got {dim} and {size}")
        self.size, self.seed = size, seed
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return min(self.size, int(self.seen))

    @torch.no_grad()
    def push(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"] | None = None) -> None:
        """Offer rows.

        Args:
            features: Rows.
            labels: Their labels; -1 where absent.
        """
        tags = torch.full((len(features),), -1, device=features.device) if labels is None else labels
        rows, tags = gather(features.detach()), gather(tags)
        start = int(self.seen)
        slots = self._slots(start, len(rows))
        kept = np.flatnonzero(slots < self.size)
        # Of several rows for one slot the last stays.
        last = {int(slots[row]): int(row) for row in kept}
        if last:
            where = torch.tensor(list(last), device=self.features.device)
            which = torch.tensor(list(last.values()), device=rows.device)
            self.features[where] = rows[which].to(self.features)
            self.labels[where] = tags[which].to(self.labels)
        self.seen.fill_(start + len(rows))

    def _slots(self, start: int, count: int) -> Int[np.ndarray, " b"]:
        """Slot of each row t; one past the end for rows that are not kept."""
        t = np.arange(start, start + count)
        # One counter of the generator gives four words; each row uses the first of its own.
        words = np.random.Philox(key=self.seed, counter=start).random_raw(4 * count)[::4]
        drawn = ((words >> np.uint64(11)) * 2.0**-53 * (t + 1)).astype(np.int64)
        return np.where(t < self.size, t, np.minimum(drawn, self.size))

    def rows(self) -> Float[Tensor, "n d"]:
        """A copy of the sample."""
        return self.features[: len(self)].clone()
