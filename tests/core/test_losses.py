"""Losses against dense references, gradcheck, closed forms, hazards, and the size of what they allocate."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_core.losses import CLIPLoss, InfoNCE, NTXent, SupCon, clip_loss, info_nce, nt_xent, sup_con
from torch.utils._python_dispatch import TorchDispatchMode

LOW = float("-inf")


def rows(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def dense_info_nce(q, k, t, *, ids=None, queue=None):
    q, k = F.normalize(q), F.normalize(k)
    s = q @ k.T / t
    if ids is not None:
        s = s.masked_fill((ids[:, None] == ids[None]) & ~torch.eye(len(s), dtype=torch.bool), LOW)
    if queue is not None:
        s = torch.cat([s, q @ F.normalize(queue).T / t], 1)
    return F.cross_entropy(s, torch.arange(len(q)))


def dense_nt_xent(a, b, t):
    z = F.normalize(torch.cat([a, b]))
    s = (z @ z.T / t).masked_fill(torch.eye(len(z), dtype=torch.bool), LOW)
    return F.cross_entropy(s, torch.arange(len(z)).roll(len(a)))


def dense_sup_con(x, labels, t, positives):
    z = F.normalize(x)
    eye = torch.eye(len(z), dtype=torch.bool)
    s = (z @ z.T / t).masked_fill(eye, LOW)
    same = (labels[:, None] == labels[None]) & ~eye
    has = same.any(1)
    denominator = s.logsumexp(1)
    if positives == "out":
        attraction = s.masked_fill(~same, 0.0).sum(1) / same.sum(1).clamp(min=1)
    else:
        attraction = s.masked_fill(~same, LOW).logsumexp(1) - same.sum(1).clamp(min=1).to(s).log()
    return (denominator - attraction)[has].mean()


@pytest.mark.parametrize("tile", [None, 1, 3, 17])
@pytest.mark.parametrize("t", [0.5, 0.01])
def test_values_and_gradients_equal_the_dense_formulas(tile, t):
    a, b, queue = rows(17, 6), rows(17, 6, seed=1), rows(9, 6, seed=2).detach()
    labels = torch.arange(17) % 5
    labels[16] = 99  # a row without positive
    ids = torch.arange(17) // 2
    pairs = [
        (info_nce(a, b, temperature=t, tile=tile), dense_info_nce(a, b, t)),
        (info_nce(a, b, temperature=t, tile=tile, ids=ids), dense_info_nce(a, b, t, ids=ids)),
        (info_nce(a, b, temperature=t, tile=tile, queue=queue), dense_info_nce(a, b, t, queue=queue)),
        (
            clip_loss(a, b, logit_scale=1 / t, tile=tile),
            (dense_info_nce(a, b, t) + dense_info_nce(b, a, t)) / 2,
        ),
        (nt_xent(a, b, temperature=t, tile=tile), dense_nt_xent(a, b, t)),
        (sup_con(a + 0 * b, labels, temperature=t, tile=tile), dense_sup_con(a + 0 * b, labels, t, "out")),
        (
            sup_con(a + 0 * b, labels, temperature=t, tile=tile, positives="in"),
            dense_sup_con(a + 0 * b, labels, t, "in"),
        ),
    ]
    for ours, reference in pairs:
        torch.testing.assert_close(ours, reference, atol=1e-10, rtol=1e-10)
        for g, r in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(reference, (a, b)), strict=True):
            torch.testing.assert_close(g, r, atol=1e-9, rtol=1e-9)


def test_gradcheck_with_a_learned_temperature():
    a, b = rows(5, 3), rows(5, 3, seed=1)
    t = torch.tensor(0.4, dtype=torch.double, requires_grad=True)
    labels, ids = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 1, 2, 1, 3])
    for loss in (
        lambda a, b, t: info_nce(a, b, temperature=t, tile=2, ids=ids),
        lambda a, b, t: info_nce(a, b, temperature=t, symmetric=True, tile=2),
        lambda a, b, t: nt_xent(a, b, temperature=t, tile=3, ids=ids),
        lambda a, b, t: sup_con(a + b, labels, temperature=t, tile=2),
        lambda a, b, t: sup_con(a + b, labels, temperature=t, tile=2, positives="in"),
    ):
        assert torch.autograd.gradcheck(loss, (a, b, t))


def test_closed_forms():
    same = torch.ones(6, 4, dtype=torch.double)
    assert float(nt_xent(same, same)) == pytest.approx(math.log(11))
    assert float(info_nce(same, same)) == pytest.approx(math.log(6))
    eye = torch.eye(4, dtype=torch.double)
    t = 0.3
    assert float(nt_xent(eye, eye, temperature=t)) == pytest.approx(-1 / t + math.log(math.exp(1 / t) + 6))


def test_gradient_is_orthogonal_to_the_embedding():
    a, b = rows(8, 5), rows(8, 5, seed=1)
    for loss in (nt_xent(a, b), info_nce(a, b), clip_loss(a, b), sup_con(a, torch.arange(8) % 2)):
        (grad,) = torch.autograd.grad(loss, a)
        torch.testing.assert_close((grad * a).sum(1), torch.zeros(8, dtype=torch.double), atol=1e-12, rtol=0)


def test_sup_con_with_one_positive_is_nt_xent_and_in_is_below_out():
    a, b = rows(7, 4), rows(7, 4, seed=1)
    both = torch.cat([a, b])
    for positives in ("out", "in"):
        ours = sup_con(both, torch.arange(7).repeat(2), temperature=0.2, positives=positives)
        torch.testing.assert_close(ours, nt_xent(a, b, temperature=0.2))
    labels = torch.arange(14) % 3
    inside, outside = (sup_con(both, labels, positives=positives, reduction="none") for positives in ("in", "out"))
    assert (inside <= outside + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_and_low_temperature_stay_finite(dtype):
    a, b = (rows(40, 8, seed=seed, dtype=torch.float32).detach().to(dtype).requires_grad_() for seed in (0, 1))
    labels = torch.arange(40) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (
            nt_xent(a, b, temperature=0.01),
            info_nce(a, b, temperature=0.01),
            sup_con(a, labels, temperature=0.01),
        ):
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
            assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, a))


def test_rows_of_norm_zero_have_no_gradient_and_no_nan():
    a, b = rows(4, 3), rows(4, 3, seed=1)
    with torch.no_grad():
        a[1] = 0
        b[2] = 0
    for loss in (nt_xent(a, b), info_nce(a, b), sup_con(a, torch.tensor([0, 0, 1, 1]))):
        (grad,) = torch.autograd.grad(loss, a)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


def test_one_row_no_positive_and_nothing_left_give_zero():
    one = rows(1, 3)
    for loss in (info_nce(one, one), nt_xent(one, one), sup_con(one, torch.tensor([0]))):
        assert loss.item() == pytest.approx(0, abs=1e-12)
    x = rows(3, 3)
    loss = sup_con(x, torch.tensor([0, 1, 2]))
    assert float(loss) == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))
    same = torch.zeros(3, dtype=torch.long)
    loss = info_nce(x, x.flip(0), ids=same)  # every other pair is the same item: no negatives at all
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()


def test_duplicates_are_negatives_unless_ids_say_otherwise():
    a = rows(6, 4).detach()
    a[1] = a[0]
    ids = torch.tensor([0, 0, 1, 2, 3, 4])
    assert info_nce(a, a, ids=ids) < info_nce(a, a)
    assert nt_xent(a, a, ids=ids) < nt_xent(a, a)


@pytest.mark.parametrize("tile", [None, 2])
def test_queue_entries_of_the_same_id_are_no_negatives(tile):
    a, b, queue = rows(6, 4), rows(6, 4, seed=1), rows(5, 4, seed=2).detach()
    ids, queue_ids = torch.tensor([0, 1, 2, 2, 4, 5]), torch.tensor([4, 4, 9, 2, 0])
    z, k, u = F.normalize(a), F.normalize(b), F.normalize(queue)
    same = (ids[:, None] == ids) & ~torch.eye(6, dtype=torch.bool)
    s = torch.cat([(z @ k.T).masked_fill(same, LOW), (z @ u.T).masked_fill(ids[:, None] == queue_ids, LOW)], 1) / 0.2
    reference = F.cross_entropy(s, torch.arange(6))
    ours = info_nce(a, b, temperature=0.2, ids=ids, queue=queue, queue_ids=queue_ids, tile=tile)
    torch.testing.assert_close(ours, reference)
    for g, r in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(reference, (a, b)), strict=True):
        torch.testing.assert_close(g, r)


def test_a_query_without_any_negative_costs_nothing_and_has_no_gradient():
    a, b, queue = rows(1, 4), rows(1, 4, seed=1), rows(3, 4, seed=2).detach()
    loss = info_nce(a, b, ids=torch.tensor([7]), queue=queue, queue_ids=torch.tensor([7, 7, 7]))
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, a)[0], torch.zeros_like(a))


def test_bf16_tiles_stay_close():
    a, b = rows(300, 64, dtype=torch.float32), rows(300, 64, seed=1, dtype=torch.float32)
    exact, coarse = (nt_xent(a, b, temperature=0.1, precision=precision) for precision in ("exact", "bf16"))
    assert float(coarse) == pytest.approx(float(exact), rel=1e-3)
    g, h = (torch.autograd.grad(loss, a)[0].flatten() for loss in (exact, coarse))
    assert float(F.cosine_similarity(g, h, dim=0)) > 0.999


class Largest(TorchDispatchMode):
    """Remembers the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_nothing_of_the_size_of_all_pairs_is_allocated():
    a, b = rows(2048, 32, dtype=torch.float32), rows(2048, 32, seed=1, dtype=torch.float32)
    labels = torch.arange(4096) % 7
    for loss in (
        lambda: nt_xent(a, b),
        lambda: clip_loss(a, b),
        lambda: sup_con(torch.cat([a, b]), labels, positives="in"),
        lambda: info_nce(a, b, ids=labels[:2048]),
    ):
        with Largest() as largest:
            loss().backward()
        assert largest.elements <= 1024 * 1024


def test_modules_equal_functions_and_the_scale_is_kept_below_100():
    a, b = rows(6, 4), rows(6, 4, seed=1)
    assert torch.equal(InfoNCE(0.2)(a, b), info_nce(a, b, temperature=0.2))
    assert torch.equal(NTXent(0.2)(a, b), nt_xent(a, b, temperature=0.2))
    labels = torch.arange(6) % 2
    assert torch.equal(SupCon(0.2, positives="in")(a, labels), sup_con(a, labels, temperature=0.2, positives="in"))
    clip = CLIPLoss(initial_scale=1e6)
    clip(a, b).backward()
    assert float(clip.log_scale.exp()) == pytest.approx(100, rel=1e-4)
    assert torch.isfinite(clip.log_scale.grad)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "call",
    [
        lambda: info_nce(torch.ones(2, 3), torch.ones(3, 3)),
        lambda: info_nce(torch.ones(0, 3), torch.ones(0, 3)),
        lambda: nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0.0),
        lambda: sup_con(torch.ones(2, 3), torch.ones(3)),
        lambda: info_nce(torch.ones(2, 3), torch.ones(2, 3), symmetric=True, queue=torch.ones(2, 3)),
        lambda: info_nce(torch.ones(2, 3), torch.ones(2, 3), queue=torch.ones(2, 4)),
        lambda: info_nce(torch.ones(2, 3), torch.ones(2, 3), queue=torch.ones(2, 3), queue_ids=torch.zeros(2).long()),
        lambda: info_nce(torch.ones(2, 3), torch.ones(2, 3), ids=torch.arange(2), queue_ids=torch.arange(2)),
        lambda: clip_loss(torch.ones(2, 3), torch.ones(2, 3), logit_scale=0.0),
        lambda: clip_loss(torch.ones(2, 3), torch.ones(2, 3), logit_scale=torch.tensor(-1.0)),
        lambda: info_nce(torch.ones(2, 3), torch.ones(2, 3), temperature=math.nan),
        lambda: nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=torch.tensor([0.1, 0.2])),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|empty|temperature|queue|scale"):
        call()


@pytest.mark.parametrize("positives", ["out", "in"])
def test_rows_without_label_are_negatives_only(positives):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 0, -1, 1, 1, 1, -1, -1, 2])
    z = torch.nn.functional.normalize(x)
    s = (z @ z.T / 0.2).masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf)
    terms = []
    for i, label in enumerate(labels.tolist()):
        p = [j for j in range(9) if j != i and labels[j] == label >= 0]
        if p:
            inside = s[i, p].mean() if positives == "out" else s[i, p].exp().mean().log()
            terms.append(s[i].logsumexp(0) - inside)
    expected = torch.stack(terms).mean()
    found = sup_con(x, labels, temperature=0.2, positives=positives)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x)[0])
    assert float(sup_con(x, torch.full((9,), -1)).detach()) == 0
