"""Speed of every loss of the core, forward and backward, against the fastest of its peers at several sizes."""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from contrastive_core import losses as L
from torch import Tensor

from cl_bench.measures import Speed, race

ROWS = (16, 64, 256, 1024, 4096)
"""Rows of a view."""

_T = 0.1
_CLASSES = 16
_PROTOTYPES = 64
_BURST = 0.02
"""Seconds of calls that are timed together, so that a clock's tick is no part of the result."""

_Loss = Callable[[Tensor, Tensor], Tensor]


def speed(rounds: int, rows: Sequence[int] = ROWS, width: int = 128) -> list[Speed]:
    """Every loss at every size, the slowest cell first.

    Args:
        rounds: Timed rounds of each contestant.
        rows: Rows of a view.
        width: Of an embedding.

    Returns:
        One entry a loss and size, against the peer that was fastest there; ``notes`` hold the width.
    """
    entries = []
    for count in rows:
        views = [_rows(seed, count, width) for seed in (0, 1)]
        for name, (ours, peers) in _inventory(count, width).items():
            entries.append(_cell(f"{name}, {count} rows", ours, peers, views, rounds, width))
    return sorted(entries, key=lambda entry: entry.to_dict()["ratio"])


def _cell(name: str, ours: _Loss, peers: dict[str, _Loss], views: list[Tensor], rounds: int, width: int) -> Speed:
    """Race with the peer that a first look finds fastest."""

    def once(loss: _Loss) -> None:
        torch.autograd.grad(loss(*views), views, allow_unused=True)

    seconds = {}
    for peer, loss in peers.items():
        once(loss)
        start = time.perf_counter()
        once(loss)
        seconds[peer] = time.perf_counter() - start
    peer = min(seconds, key=lambda each: seconds[each])
    calls = max(1, int(_BURST / seconds[peer]))

    def burst(loss: _Loss) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                once(loss)

        return run

    notes = f"float32, width {width}, {calls} calls a round"
    return race(f"core: {name}", burst(ours), burst(peers[peer]), peer=peer, rounds=rounds, notes=notes)


def _inventory(count: int, width: int) -> dict[str, tuple[_Loss, dict[str, _Loss]]]:
    """Our losses, and those of the peers, as functions of two views."""
    from lightly import loss as lightly
    from open_clip.loss import ClipLoss, SigLipLoss
    from pytorch_metric_learning import losses as metric_learning

    labels = torch.arange(count) % _CLASSES
    both = labels.repeat(2)
    queue, prototypes = _rows(2, 4 * count, width).detach(), _rows(3, _PROTOTYPES, width).detach()
    index, place = torch.arange(count), torch.arange(count) % _PROTOTYPES
    scale, bias = torch.tensor(1 / _T), torch.tensor(-10.0)
    clip, sigmoid = ClipLoss(), SigLipLoss()
    swav = lightly.SwaVLoss(temperature=_T)
    their_sup_con, their_nt_xent = metric_learning.SupConLoss(_T), metric_learning.NTXentLoss(_T)

    def cosines(a: Tensor, b: Tensor) -> Tensor:
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / _T

    def dense_clip(a: Tensor, b: Tensor) -> Tensor:
        s = cosines(a, b)
        return (F.cross_entropy(s, index) + F.cross_entropy(s.T, index)) / 2

    def dense_siglip(a: Tensor, b: Tensor) -> Tensor:
        signs = 2 * torch.eye(count) - 1
        return -F.logsigmoid(signs * (cosines(a, b) - 10)).sum() / count

    def dense_queue(a: Tensor, b: Tensor) -> Tensor:
        q = F.normalize(a, dim=1)
        positive = (q * F.normalize(b, dim=1)).sum(1, keepdim=True)
        return F.cross_entropy(torch.cat([positive, q @ F.normalize(queue, dim=1).T], 1) / _T, index * 0)

    def dense_decoupled(a: Tensor, b: Tensor) -> Tensor:
        s = cosines(torch.cat([a, b]), torch.cat([a, b]))
        own = torch.eye(count, dtype=torch.bool).repeat(2, 2)
        return (s.masked_fill(own, float("-inf")).logsumexp(1) - s.diagonal(count).repeat(2)).mean()

    def dense_hard(a: Tensor, b: Tensor) -> Tensor:
        e = cosines(torch.cat([a, b]), torch.cat([a, b])).exp()
        negatives = e.masked_fill(torch.eye(count, dtype=torch.bool).repeat(2, 2), 0.0)
        weighted = (negatives * negatives).sum(1) / negatives.sum(1) * (2 * count - 2)
        positive = e.diagonal(count).repeat(2)
        rest = ((weighted - 0.1 * (2 * count - 2) * positive) / 0.9).clamp(min=(2 * count - 2) * 4.5e-5)
        return -(positive / (positive + rest)).log().mean()

    def dense_relational(a: Tensor, b: Tensor) -> Tensor:
        own = torch.eye(count, dtype=torch.bool)
        student, teacher = (cosines(x, x).masked_fill(own, -1e9).log_softmax(1) for x in (a, b.detach()))
        return F.kl_div(student, teacher, log_target=True, reduction="batchmean")

    def dense_spectral(a: Tensor, b: Tensor) -> Tensor:
        s = a @ b.T
        return -2 * s.diagonal().mean() + (s.square().sum() - s.diagonal().square().sum()) / (count * (count - 1))

    def dense_mmd(a: Tensor, b: Tensor) -> Tensor:
        n = count * (count - 1)
        kernels = [torch.exp(-torch.cdist(x, y).square() / 512) for x, y in ((a, a), (b, b), (a, b))]
        return (kernels[0].sum() - count + kernels[1].sum() - count) / n - 2 * kernels[2].mean()

    def dense_cka(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(0), b - b.mean(0)
        return (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())

    def dense_barlow(a: Tensor, b: Tensor) -> Tensor:
        a, b = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (a, b))
        c = a.T @ b / count
        diagonal = c.diagonal()
        return (1 - diagonal).square().sum() + 5e-3 * (c.square().sum() - diagonal.square().sum())

    def dense_proto(a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(cosines(a, prototypes), place)

    def dense_soft(a: Tensor, b: Tensor) -> Tensor:
        return dense_clip(a, b)

    def dense_moco(a: Tensor, b: Tensor) -> Tensor:
        one, other = cosines(a, b.detach()), cosines(b, a.detach())
        return 2 * _T * (F.cross_entropy(one, index) + F.cross_entropy(other, index))

    def dense_cosine(a: Tensor, b: Tensor) -> Tensor:
        return -F.cosine_similarity(a, b.detach()).mean()

    def dense_distillation(a: Tensor, b: Tensor) -> Tensor:
        student, teacher = (a / 4).log_softmax(1), (b.detach() / 4).log_softmax(1)
        return 16 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")

    def dense_swav(a: Tensor, b: Tensor) -> Tensor:
        centres = F.normalize(prototypes, dim=1)
        scores = [F.normalize(x, dim=1) @ centres.T for x in (a, b)]
        return swav(scores, [])

    views = {"dense formula": lambda a, b: _dense_views(a, b, index)}
    their_views: dict[str, _Loss] = {"lightly": lightly.NTXentLoss(temperature=_T)}
    if count <= 256:  # it lists every positive with every negative: 34 GB at 1,024 rows
        their_views["pytorch-metric-learning"] = lambda a, b: their_nt_xent(torch.cat([a, b]), index.repeat(2))
    return {
        "nt_xent": (lambda a, b: L.nt_xent(a, b, temperature=_T), views | their_views),
        "info_nce": (
            lambda a, b: L.info_nce(a, b, temperature=_T),
            {"dense formula": lambda a, b: F.cross_entropy(cosines(a, b), index)},
        ),
        "info_nce with a queue": (
            lambda a, b: L.info_nce(a, b, temperature=_T, queue=queue),
            {"dense formula without the batch's keys": dense_queue},
        ),
        "moco_v3": (lambda a, b: L.moco_v3(a, b, a, b, temperature=_T), {"dense formula": dense_moco}),
        "clip_loss": (
            lambda a, b: L.clip_loss(a, b, logit_scale=scale),
            {
                "dense formula": dense_clip,
                "open_clip": lambda a, b: clip(F.normalize(a, dim=1), F.normalize(b, dim=1), scale),
            },
        ),
        "siglip": (
            lambda a, b: L.siglip(a, b, logit_scale=scale, logit_bias=bias),
            {
                "dense formula": dense_siglip,
                "open_clip": lambda a, b: sigmoid(F.normalize(a, dim=1), F.normalize(b, dim=1), scale, bias),
            },
        ),
        "sup_con": (
            lambda a, b: L.sup_con(torch.cat([a, b]), both, temperature=_T),
            {
                "dense formula": lambda a, b: _dense_classes(a, b, both, inside=False),
                "pytorch-metric-learning": lambda a, b: their_sup_con(torch.cat([a, b]), both),
            },
        ),
        "sup_con in": (
            lambda a, b: L.sup_con(torch.cat([a, b]), both, temperature=_T, positives="in"),
            {"dense formula": lambda a, b: _dense_classes(a, b, both, inside=True)},
        ),
        "decoupled": (
            lambda a, b: L.decoupled(a, b, temperature=_T),
            {"dense formula": dense_decoupled, "lightly": lightly.DCLLoss(temperature=_T)},
        ),
        "hard_negative": (lambda a, b: L.hard_negative(a, b, temperature=_T), {"dense formula": dense_hard}),
        "proto_nce": (lambda a, b: L.proto_nce(a, place, prototypes, temperature=_T), {"dense formula": dense_proto}),
        "soft_info_nce": (lambda a, b: L.soft_info_nce(a, b, temperature=_T), {"dense formula": dense_soft}),
        "relational_distillation": (
            lambda a, b: L.relational_distillation(a, b, student_temperature=_T, teacher_temperature=_T),
            {"dense formula": dense_relational},
        ),
        "distillation": (lambda a, b: L.distillation(a, b), {"dense formula": dense_distillation}),
        "swav": (lambda a, b: L.swav([a, b], prototypes, temperature=_T), {"lightly": dense_swav}),
        "negative_cosine": (
            lambda a, b: L.negative_cosine(a, b),
            {"dense formula": dense_cosine, "lightly": lambda a, b: lightly.NegativeCosineSimilarity()(a, b.detach())},
        ),
        "barlow_twins": (
            lambda a, b: L.barlow_twins(a, b),
            {"dense formula": dense_barlow, "lightly": lightly.BarlowTwinsLoss()},
        ),
        "vicreg": (lambda a, b: L.vicreg(a, b), {"lightly": lightly.VICRegLoss()}),
        "spectral_contrastive": (lambda a, b: L.spectral_contrastive(a, m2=b), {"dense formula": dense_spectral}),
        "mmd": (lambda a, b: L.mmd(a, b, sigma=16.0), {"dense formula": dense_mmd}),
        "cka": (lambda a, b: L.cka(a, b), {"dense formula": dense_cka}),
    }


def _dense_views(a: Tensor, b: Tensor, index: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / _T).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, torch.cat([index + len(a), index]))


def _dense_classes(a: Tensor, b: Tensor, labels: Tensor, *, inside: bool) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    s = (z @ z.T / _T).masked_fill(itself, float("-inf"))
    same = (labels[:, None] == labels) & ~itself
    count = same.sum(1)
    if inside:
        attraction = s.masked_fill(~same, float("-inf")).logsumexp(1) - count.log()
    else:
        attraction = s.masked_fill(~same, 0.0).sum(1) / count
    return (s.logsumexp(1) - attraction).mean()


def _rows(seed: int, rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), requires_grad=True)
