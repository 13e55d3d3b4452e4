"""Speed of the core's losses: forward and backward, against the dense formulas and the libraries people use."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contrastive_core.losses import clip_loss, nt_xent, sup_con
from contrastive_core.losses.products import similarities
from torch import Tensor

from cl_bench.measures import Speed, race

_TEMPERATURE = 0.1
_TILE = 1024


def speed(rounds: int) -> list[Speed]:
    """NT-Xent, CLIP and SupCon, forward and backward, with float32 embeddings at temperature 0.1.

    Args:
        rounds: Timed rounds of each contestant; at most two of the largest case.
    """
    entries = [_against_dense(256, 128, rounds), _against_dense(4096, 256, rounds)]
    entries += [_against_lightly(rounds), _against_open_clip(rounds), _against_open_clip(rounds, tile=512)]
    entries.append(_against_metric_learning(rounds))
    entries.append(_against_products(32768, 128, min(rounds, 2)))
    if _multiplies_bfloat16():
        entries.append(_against_float32(rounds))
    return entries


def _against_dense(pairs: int, width: int, rounds: int) -> Speed:
    views = _rows(2, pairs, width)
    return _entry(
        f"nt_xent, {pairs} pairs x {width}",
        lambda: nt_xent(*views, temperature=_TEMPERATURE),
        lambda: _dense(*views),
        views,
        peer="dense formula",
        rounds=rounds if pairs > 1000 else 20 * rounds,
        operations=_symmetric_operations(2 * pairs, width),
    )


def _against_lightly(rounds: int) -> Speed:
    from lightly.loss import NTXentLoss

    views, theirs = _rows(2, 4096, 256), NTXentLoss(temperature=_TEMPERATURE)
    return _entry(
        "nt_xent, 4096 pairs x 256",
        lambda: nt_xent(*views, temperature=_TEMPERATURE),
        lambda: theirs(*views),
        views,
        peer="lightly NTXentLoss",
        rounds=rounds,
    )


def _against_open_clip(rounds: int, tile: int | None = None) -> Speed:
    from open_clip import ClipLoss

    pair, scale, theirs = _rows(2, 4096, 512), torch.tensor(1 / _TEMPERATURE), ClipLoss()
    return _entry(
        "clip_loss, 4096 pairs x 512" + ("" if tile is None else f", tiles of {tile}"),
        lambda: clip_loss(*pair, logit_scale=scale, tile=tile),
        lambda: theirs(*(F.normalize(x, dim=1) for x in pair), scale),
        pair,
        peer="open_clip ClipLoss",
        rounds=rounds,
        operations=4 * 2 * 4096 * 4096 * 512,  # the similarities twice, and one product for each modality
    )


def _against_metric_learning(rounds: int) -> Speed:
    from pytorch_metric_learning.losses import SupConLoss

    (x,), labels = _rows(1, 4096, 256), torch.arange(4096) % 100
    theirs = SupConLoss(temperature=_TEMPERATURE)
    return _entry(
        "sup_con, 4096 rows x 256, 100 classes",
        lambda: torch.as_tensor(sup_con(x, labels, temperature=_TEMPERATURE)),
        lambda: theirs(x, labels),
        [x],
        peer="pytorch-metric-learning SupConLoss",
        rounds=rounds,
        operations=_symmetric_operations(4096, 256),
    )


def _against_products(pairs: int, width: int, rounds: int) -> Speed:
    """The peer does the products of the symmetric formula and no more: the ratio is the fraction of that limit."""
    views = _rows(2, pairs, width)
    rows = torch.cat(views).detach()
    tile, out, similar = torch.rand(_TILE, _TILE), torch.empty(_TILE, width), torch.empty(_TILE, _TILE)
    blocks = 2 * pairs // _TILE

    def products() -> None:
        for i in range(blocks):
            block = rows[i * _TILE : (i + 1) * _TILE]
            for j in range(i, blocks):  # one triangle: similarities in both passes, and a product for each row block
                torch.mm(block, rows[j * _TILE : (j + 1) * _TILE].T, out=similar)
                torch.mm(block, rows[j * _TILE : (j + 1) * _TILE].T, out=similar)
                torch.mm(tile, block, out=out)
                if j > i:
                    torch.mm(tile.T, block, out=out)

    def ours() -> None:
        torch.autograd.grad(torch.as_tensor(nt_xent(*views, temperature=_TEMPERATURE)), views)

    return race(
        f"core: nt_xent, {pairs} pairs x {width}",
        ours,
        products,
        peer="its matrix products alone (torch.mm)",
        rounds=rounds,
        notes=f"the ratio is the fraction of the matmul limit; one dense matrix would be {16 * pairs**2 >> 30} GiB",
    )


def _against_float32(rounds: int) -> Speed:
    views = _rows(2, 4096, 256)

    def run(precision: Any) -> tuple[Tensor, Tensor]:
        loss = torch.as_tensor(nt_xent(*views, temperature=_TEMPERATURE, precision=precision))
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, views)]).double()

    (exact, gradient), (coarse, other) = run("exact"), run("bf16")
    return _entry(
        "nt_xent in bf16, 4096 pairs x 256",
        lambda: nt_xent(*views, temperature=_TEMPERATURE, precision="bf16"),
        lambda: nt_xent(*views, temperature=_TEMPERATURE),
        views,
        peer="our float32",
        rounds=rounds,
        remark=f"loss differs by {float((coarse - exact).abs() / exact):.1e} relative, gradient cosine "
        f"{float(F.cosine_similarity(gradient, other, dim=0)):.7f}",
    )


def _entry(
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    inputs: list[Tensor],
    *,
    peer: str,
    rounds: int,
    operations: int = 0,
    remark: str = "",
) -> Speed:
    """Race two losses, forward and backward."""
    entry = race(
        f"core: {name}",
        lambda: torch.autograd.grad(ours(), inputs),
        lambda: torch.autograd.grad(theirs(), inputs),
        peer=peer,
        rounds=rounds,
        notes=remark,
    )
    if not operations:
        return entry
    seconds = sorted(entry.ours)[len(entry.ours) // 2]
    rate = operations / seconds / 1e9
    mm, own = _rate(inputs[0].shape[1], lambda a, b: a @ b.T), _rate(inputs[0].shape[1], similarities)
    notes = f"{rate:.0f} GFLOP/s, {rate / own:.0%} of the rate of its tile product ({own:.0f}; torch.mm {mm:.0f})"
    return dataclasses.replace(entry, notes=f"{remark}; {notes}" if remark else notes)


def _symmetric_operations(rows: int, width: int) -> int:
    """Half of the similarities in each pass, and the product of all weights with all rows."""
    return 2 * 2 * rows * rows * width


def _rate(width: int, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Sustained GFLOP/s of tile products, the best of a few bursts."""
    (a, b) = torch.rand(2, _TILE, width)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20):
            product(a, b)
        best = max(best, 20 * 2 * _TILE * _TILE * width / (time.perf_counter() - start) / 1e9)
    return best


def _rows(count: int, rows: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, generator=generator, requires_grad=True) for _ in range(count)]


def _multiplies_bfloat16() -> bool:
    information = Path("/proc/cpuinfo")
    flags = information.read_text() if information.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _dense(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]))
    logits = z @ z.T / _TEMPERATURE
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))
