"""What goes wrong in contrastive losses elsewhere, one test each, over every loss it could befall."""

import math

import pytest
import torch
from contrastive_core import losses as L
from contrastive_core.losses import products


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


TWO_VIEWS = {
    "info_nce": lambda a, b, t: L.info_nce(a, b, temperature=t),
    "info_nce queue": lambda a, b, t: L.info_nce(a, b, temperature=t, queue=b.detach().flip(0)),
    "clip_loss": lambda a, b, t: L.clip_loss(a, b, logit_scale=1 / t),
    "moco_v3": lambda a, b, t: L.moco_v3(a, b, a, b, temperature=t),
    "nt_xent": lambda a, b, t: L.nt_xent(a, b, temperature=t),
    "sup_con": lambda a, b, t: L.sup_con(a, torch.arange(len(a)) % 4, temperature=t),
    "sup_con in": lambda a, b, t: L.sup_con(a, torch.arange(len(a)) % 4, temperature=t, positives="in"),
    "siglip": lambda a, b, t: L.siglip(a, b, logit_scale=1 / t),
    "decoupled": lambda a, b, t: L.decoupled(a, b, temperature=t, sigma=0.5),
    "debiased": lambda a, b, t: L.debiased(a, b, temperature=t),
    "hard_negative": lambda a, b, t: L.hard_negative(a, b, temperature=t),
    "negative_cosine": lambda a, b, t: L.negative_cosine(a, b),
    "swav": lambda a, b, t: L.swav([a, b], b[:4], temperature=t, epsilon=t),
    "proto_nce": lambda a, b, t: L.proto_nce(a, torch.arange(len(a)) % 4, b[:4], temperature=t),
    "relational": lambda a, b, t: L.relational_distillation(a, b, student_temperature=t, teacher_temperature=t),
}


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cold_temperatures_in_half_precision_under_autocast(name, dtype):
    a, b = rows(24, 8, dtype=dtype), rows(24, 8, seed=1, dtype=dtype)
    with torch.no_grad():
        b[:6] = a[:6]  # similarities of 1, exp(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TWO_VIEWS[name](a, b, 0.01)
    (grad,) = torch.autograd.grad(loss, a)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_rows_of_norm_zero_have_no_gradient(name):
    a, b = rows(12, 4, dtype=torch.double), rows(12, 4, seed=1, dtype=torch.double)
    with torch.no_grad():
        a[7], b[9] = 0, 0
    loss = TWO_VIEWS[name](a, b, 0.2)
    (grad,) = torch.autograd.grad(loss, a)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert torch.equal(grad[7], torch.zeros(4, dtype=torch.double))


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_gradient_is_orthogonal_to_the_embedding(name):
    a, b = rows(9, 5, dtype=torch.double), rows(9, 5, seed=1, dtype=torch.double)
    (grad,) = torch.autograd.grad(TWO_VIEWS[name](a, b, 0.3), a)
    torch.testing.assert_close((grad * a).sum(1), torch.zeros(9, dtype=torch.double), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_scale_of_the_embedding_does_not_matter(name):
    a, b = rows(9, 5, dtype=torch.double), rows(9, 5, seed=1, dtype=torch.double)
    torch.testing.assert_close(TWO_VIEWS[name](1e6 * a, 1e-6 * b, 0.3), TWO_VIEWS[name](a, b, 0.3))


WITH_TEMPERATURE = {name: loss for name, loss in TWO_VIEWS.items() if name not in ("negative_cosine", "swav")} | {
    "relational": lambda a, b, t: L.relational_distillation(a, b, student_temperature=t),
    "swav": lambda a, b, t: L.swav([a, b], b[:4], temperature=t),
}


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("value", [1e-3, 0.02, 0.03, 1.0, 1e3])
def test_a_wide_range_of_temperatures_is_differentiable(name, value):
    a, b = rows(9, 5, dtype=torch.double), rows(9, 5, seed=1, dtype=torch.double)
    t = torch.tensor(value, dtype=torch.double, requires_grad=True)
    loss = WITH_TEMPERATURE[name](a, b, t)
    (grad,) = torch.autograd.grad(loss, t)
    step = value * 1e-6
    with torch.no_grad():
        slope = float(WITH_TEMPERATURE[name](a, b, value + step) - WITH_TEMPERATURE[name](a, b, value - step)) / (
            2 * step
        )
    assert float(grad) == pytest.approx(slope, rel=2e-3, abs=1e-6 * max(1.0, abs(float(loss.detach())) / value))


@pytest.mark.parametrize("onednn", [True, False])
def test_tile_products_are_products_in_either_library(monkeypatch, onednn):
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "_by_onednn", lambda x, columns: onednn)
    a, b, w = rows(40, 7).detach(), rows(33, 7, seed=1).detach(), rows(40, 33, seed=2).detach()
    torch.testing.assert_close(products.similarities(a, b), a @ b.T)
    torch.testing.assert_close(products.weighted_sum(w, b), w @ b)
    torch.testing.assert_close(products.transposed_weighted_sum(w, a), w.T @ a)


@pytest.mark.parametrize("temperature", [0.024, 0.026])
def test_both_ways_of_summing_agree_at_their_border(temperature):
    """Above 1/40 exponentials are summed as they are, below around the running maximum."""
    a, b = rows(40, 6, dtype=torch.double), rows(40, 6, seed=1, dtype=torch.double)
    z = torch.nn.functional.normalize(torch.cat([a, b]))
    s = (z @ z.T / temperature).masked_fill(torch.eye(80, dtype=torch.bool), float("-inf"))
    reference = torch.nn.functional.cross_entropy(s, torch.arange(80).roll(40))
    ours = L.nt_xent(a, b, temperature=temperature, tile=16)
    torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-12)
    for g, r in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(reference, (a, b)), strict=True):
        torch.testing.assert_close(g, r, atol=1e-12, rtol=1e-10)


def test_a_row_whose_pairs_are_all_left_out_gives_zero_and_no_gradient():
    x = rows(5, 3, dtype=torch.double)
    one = torch.zeros(5, dtype=torch.long)
    for loss in (
        L.info_nce(x, x.detach().flip(0), ids=one),
        L.nt_xent(x, x.detach().flip(0), ids=one),
        L.decoupled(x, x.detach(), ids=one),
        L.hard_negative(x, x.detach(), ids=one),
    ):
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.zeros_like(x), atol=1e-12, rtol=0)
    lse = L.self_logsumexp(torch.nn.functional.normalize(x), torch.tensor(2.0, dtype=torch.double), ids=one)
    assert torch.equal(lse, torch.full((5,), float("-inf"), dtype=torch.double))


def test_rows_without_a_positive_leave_the_mean_and_perfect_rows_stay():
    x = torch.eye(4, dtype=torch.double)[[0, 0, 1, 1, 2]]
    labels = torch.tensor([0, 0, 1, 1, 2])
    each = L.sup_con(x, labels, temperature=0.01, reduction="none")
    assert float(each[4]) == 0
    torch.testing.assert_close(L.sup_con(x, labels, temperature=0.01), each[:4].mean())


@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_identical_rows_cost_the_logarithm_of_the_candidates(pairs):
    same = torch.ones(pairs, 3, dtype=torch.double)
    assert float(L.nt_xent(same, same)) == pytest.approx(math.log(2 * pairs - 1))
    assert float(L.info_nce(same, same)) == pytest.approx(math.log(pairs))
    assert float(L.clip_loss(same, same)) == pytest.approx(math.log(pairs))
    queue = torch.ones(5, 3, dtype=torch.double)
    assert float(L.info_nce(same, same, queue=queue)) == pytest.approx(math.log(pairs + 5))


def test_a_second_backward_through_one_graph_gives_the_same():
    a, b = rows(30, 4, dtype=torch.double), rows(30, 4, seed=1, dtype=torch.double)
    for loss in (L.nt_xent(a, b), L.clip_loss(a, b)):
        first = torch.autograd.grad(loss, (a, b), retain_graph=True)
        for g, h in zip(first, torch.autograd.grad(loss, (a, b)), strict=True):
            assert torch.equal(g, h)


def test_gradients_are_only_for_who_asks():
    a, b = rows(6, 4), rows(6, 4, seed=1).detach()
    L.info_nce(a, b).backward()
    assert b.grad is None
    t = torch.tensor(0.5, requires_grad=True)
    L.clip_loss(a.detach(), b, logit_scale=t).backward()
    assert float(t.grad.abs()) > 0
    assert not L.nt_xent(a.detach(), b).requires_grad


def test_bf16_products_stay_close_on_clustered_rows():
    centres = rows(8, 64).detach()
    a, b = ((centres.repeat(40, 1) + 0.3 * rows(320, 64, seed=seed)).detach().requires_grad_() for seed in (1, 2))
    for loss in (L.nt_xent, L.info_nce):
        exact, coarse = (loss(a, b, temperature=0.1, precision=precision) for precision in ("exact", "bf16"))
        assert float(coarse.detach()) == pytest.approx(float(exact.detach()), rel=1e-3)
        g, h = (torch.autograd.grad(value, a)[0].flatten() for value in (exact, coarse))
        assert float(torch.nn.functional.cosine_similarity(g, h, dim=0)) >= 0.9999


@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_tiles_do_not_change_the_loss(chunk):
    a, b = rows(40, 6, dtype=torch.float32), rows(40, 6, seed=1, dtype=torch.float32)
    whole, tiled = L.nt_xent(a, b, temperature=0.1), L.nt_xent(a, b, temperature=0.1, tile=chunk)
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=1e-6)
    for g, h in zip(torch.autograd.grad(tiled, (a, b)), torch.autograd.grad(whole, (a, b)), strict=True):
        torch.testing.assert_close(g, h, atol=1e-6, rtol=1e-6)
