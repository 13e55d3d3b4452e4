"""Speed of the core's losses."""

import torch
import torch.nn.functional as F
from contrastive_core.losses import nt_xent
from torch import Tensor

from cl_bench.results import Speed, race


def speed(rounds: int) -> list[Speed]:
    """NT-Xent, forward and backward, against the dense formula.

    Args:
        rounds: Timed rounds of each contestant.
    """
    entries = []
    for pairs, width in ((256, 128), (4096, 256)):
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(pairs, width, generator=generator, requires_grad=True) for _ in range(2)]

        def ours(views: list[Tensor] = views) -> None:
            nt_xent(*views, temperature=0.1).backward()

        def theirs(views: list[Tensor] = views) -> None:
            _dense(*views).backward()

        entries.append(
            race(
                f"core: nt_xent, {pairs} pairs x {width}", ours, theirs, peer="dense formula", rounds=rounds,
                notes="forward and backward, float32, temperature 0.1",
            )
        )  # fmt: skip
    return entries


def _dense(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]))
    logits = z @ z.T / 0.1
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))
