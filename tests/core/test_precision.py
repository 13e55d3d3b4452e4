"""Products in bfloat16: as close to float64 as a dense formula with bfloat16 products is, or closer.

Errors are those of the losses of single rows and of the gradient, relative in norm. The dense formula rounds a positive
once and uses it twice, so its error cancels; a kernel that rounds it on one side only is off by its whole rounding.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_core import losses as L

N, D, CLASS = 192, 64, 4
GENERATOR = torch.Generator().manual_seed(0)
QUEUE = torch.randn(300, D, generator=GENERATOR)
CLASSES = torch.arange(N).repeat(2) // CLASS
SMALLEST = 5e-5
"""Errors below are of no interest: a dense formula can be exact by luck, where all positives are 1."""


def rounded(x, y, t):
    x, y = F.normalize(x), F.normalize(y)
    return (x.bfloat16() @ y.bfloat16().T).float() / t


def dense_pairs(a, b, t):
    return F.cross_entropy(rounded(a, b, t), torch.arange(N), reduction="none")


def dense_queue(a, b, t):
    return F.cross_entropy(rounded(a, torch.cat([b, QUEUE]), t), torch.arange(N), reduction="none")


def dense_clip(a, b, t):
    s, index = rounded(a, b, t), torch.arange(N)
    return (F.cross_entropy(s, index, reduction="none") + F.cross_entropy(s.T, index, reduction="none")) / 2


def dense_views(a, b, t):
    z = torch.cat([a, b])
    s = rounded(z, z, t).fill_diagonal_(-math.inf)
    return F.cross_entropy(s, torch.arange(2 * N).roll(N), reduction="none")


def dense_classes(a, b, t, inside):
    z, itself = torch.cat([a, b]), torch.eye(2 * N, dtype=torch.bool)
    s = rounded(z, z, t)
    same = (CLASSES[:, None] == CLASSES) & ~itself
    if inside:
        attraction = s.masked_fill(~same, -math.inf).logsumexp(1) - same.sum(1).log()
    else:
        attraction = s.masked_fill(~same, 0.0).sum(1) / same.sum(1)
    return s.masked_fill(itself, -math.inf).logsumexp(1) - attraction


FORMS = {
    "info_nce": (lambda a, b, t, **k: L.info_nce(a, b, temperature=t, **k), dense_pairs),
    "info_nce ids": (lambda a, b, t, **k: L.info_nce(a, b, temperature=t, ids=torch.arange(N), **k), dense_pairs),
    "info_nce queue": (lambda a, b, t, **k: L.info_nce(a, b, temperature=t, queue=QUEUE.to(a), **k), dense_queue),
    "info_nce ring": (lambda a, b, t, **k: L.info_nce(a, b, temperature=t, gather="ring", **k), dense_pairs),
    "info_nce tiles": (lambda a, b, t, **k: L.info_nce(a, b, temperature=t, tile=64, **k), dense_pairs),
    "clip_loss": (lambda a, b, t, **k: L.clip_loss(a, b, logit_scale=1 / t, **k), dense_clip),
    "nt_xent": (lambda a, b, t, **k: L.nt_xent(a, b, temperature=t, **k), dense_views),
    "nt_xent tiles": (lambda a, b, t, **k: L.nt_xent(a, b, temperature=t, tile=64, **k), dense_views),
    "sup_con": (
        lambda a, b, t, **k: L.sup_con(torch.cat([a, b]), CLASSES, temperature=t, **k),
        lambda a, b, t: dense_classes(a, b, t, inside=False),
    ),
    "sup_con in": (
        lambda a, b, t, **k: L.sup_con(torch.cat([a, b]), CLASSES, temperature=t, positives="in", **k),
        lambda a, b, t: dense_classes(a, b, t, inside=True),
    ),
    "proto_nce": (lambda a, b, t, **k: L.proto_nce(a, torch.arange(N), b, temperature=t, **k), dense_pairs),
}


def errors(loss, a, exact):
    x = a.clone().requires_grad_()
    each = loss(x)
    (gradient,) = torch.autograd.grad(each.mean(), x)
    now = each.detach().double(), gradient.double()
    return now, [float((new - old).norm() / old.norm()) for new, old in zip(now, exact or now, strict=True)]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, math.inf])
@pytest.mark.parametrize("t", [0.02, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("name", FORMS)
def test_the_error_of_bf16_is_at_most_twice_that_of_the_dense_formula(name, t, noise):
    a, other = torch.randn(2, N, D, generator=torch.Generator().manual_seed(3))
    b = other if math.isinf(noise) else a + noise * other
    ours, dense = FORMS[name]
    exact, _ = errors(lambda x: ours(x, b.double(), t, reduction="none"), a.double(), None)
    _, tiles = errors(lambda x: ours(x, b, t, reduction="none", precision="bf16"), a, exact)
    _, plain = errors(lambda x: dense(x, b, t), a, exact)
    assert tiles[0] <= max(2 * plain[0], SMALLEST), "loss"
    assert tiles[1] <= max(2 * plain[1], SMALLEST), "gradient"


@pytest.mark.parametrize("t", [0.02, 0.1])
def test_no_row_is_below_zero(t):
    a, other = torch.randn(2, N, D, generator=torch.Generator().manual_seed(4))
    b = a + 0.02 * other
    for name in ("info_nce", "info_nce queue", "clip_loss", "nt_xent", "proto_nce"):
        for precision in ("exact", "bf16"):
            assert float(FORMS[name][0](a, b, t, reduction="none", precision=precision).min()) >= 0, name
