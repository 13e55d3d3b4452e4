"""Gradients of gradients: every public loss against finite differences of its gradient, in one tile and in many."""

import inspect

import pytest
import torch
from contrastive_core import losses as L
from contrastive_core.nn.activations import sign_ste
from torch.utils._python_dispatch import TorchDispatchMode


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


N, D = 6, 3
IDS, LABELS = torch.tensor([0, 1, 2, 1, 3, 4]), torch.tensor([0, 1, 0, 1, -1, 1])
# Targets get no gradient, so they are constants here.
OTHER = rows(N, D, seed=6)
QUEUE, CENTRES, TEACHER = rows(4, D, seed=7), rows(3, D, seed=8), rows(N, 4, seed=9)

TWO_VIEWS = {
    "info_nce": lambda a, b, t: L.info_nce(a, b, temperature=t),
    "info_nce ids": lambda a, b, t: L.info_nce(a, b, temperature=t, ids=IDS, tile=2),
    "info_nce cold": lambda a, b, t: L.info_nce(a, b, temperature=t / 20),
    "info_nce queue": lambda a, b, t: L.info_nce(a, b, temperature=t, queue=QUEUE, ids=IDS, queue_ids=IDS[:4]),
    "moco_v3": lambda a, b, t: L.moco_v3(a, b, OTHER, OTHER.flip(0), temperature=t),
    "clip_loss": lambda a, b, t: L.clip_loss(a, b, logit_scale=1 / t),
    "clip_loss tiles": lambda a, b, t: L.clip_loss(a, b, logit_scale=1 / t, ids=IDS, tile=4),
    "nt_xent": lambda a, b, t: L.nt_xent(a, b, temperature=t),
    "nt_xent tiles": lambda a, b, t: L.nt_xent(a, b, temperature=t, ids=IDS, tile=5),
    "nt_xent cold": lambda a, b, t: L.nt_xent(a, b, temperature=t / 20, tile=5),
    "siglip": lambda a, b, t: L.siglip(a, b, logit_scale=1 / t, logit_bias=-t),
    "siglip ids": lambda a, b, t: L.siglip(a, b, logit_scale=1 / t, logit_bias=-t, ids=IDS, tile=4),
    "sup_con": lambda a, b, t: L.sup_con(a + b, LABELS, temperature=t),
    "sup_con in": lambda a, b, t: L.sup_con(a + b, LABELS, temperature=t, positives="in", tile=4),
    "decoupled": lambda a, b, t: L.decoupled(a, b, temperature=t),
    "debiased": lambda a, b, t: L.debiased(a, b, temperature=t, tau_plus=0.01),
    "hard_negative": lambda a, b, t: L.hard_negative(a, b, temperature=t, tau_plus=0.01, ids=IDS),
    "proto_nce": lambda a, b, t: L.proto_nce(a, LABELS, b[:3], temperature=t),
    "swav": lambda a, b, t: L.swav([OTHER, OTHER.flip(0)], CENTRES, temperature=t),
    "soft_info_nce": lambda a, b, t: L.soft_info_nce(a, b, L.rbf_targets(TEACHER), temperature=t),
    "relational_distillation": lambda a, b, t: L.relational_distillation(a + b, TEACHER, student_temperature=t),
    "relational anchors": lambda a, b, t: L.relational_distillation(
        a, TEACHER, student_temperature=t, student_anchors=b[:3], teacher_anchors=TEACHER[:3]
    ),
    "distillation": lambda a, b, t: L.distillation(a * t, OTHER),
    "negative_cosine": lambda a, b, t: L.negative_cosine(a, b * t, stop_gradient=False),
    "byol": lambda a, b, t: L.byol(a * t, OTHER),
    "barlow_twins": lambda a, b, t: L.barlow_twins(a, b * t),
    "vicreg": lambda a, b, t: L.vicreg(a * t / 3, b),
    "spectral_contrastive": lambda a, b, t: L.spectral_contrastive(a, m2=b * t),
    "mmd": lambda a, b, t: L.mmd(a * t, b, sigma=1.3),
    "cka": lambda a, b, t: L.cka(a, b * t),
    "dec": lambda a, b, t: L.dec(L.student_t_assignment(a, b[:3] * t), OTHER.softmax(1)),
    "cluster_contrast": lambda a, b, t: L.cluster_contrast((a / t).softmax(1), b.softmax(1)),
    "contrastive_clustering": lambda a, b, t: L.contrastive_clustering(a, b, (a / t).softmax(1), b.softmax(1)),
    "quantization": lambda a, b, t: L.quantization(a * t, power=2),
    "bit_balance": lambda a, b, t: L.bit_balance(a * t),
    "bit_decorrelation": lambda a, b, t: L.bit_decorrelation(a * t),
    "flops": lambda a, b, t: L.flops(L.non_negative(a * t, "softplus")),
    "pair_logsumexp": lambda a, b, t: torch.stack(L.pair_logsumexp(a, b, 1 / t, columns=True, unit_rows=False)).sum(0),
    "self_logsumexp": lambda a, b, t: L.self_logsumexp(a + b, 1 / t, tile=4, unit_rows=False),
}


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_gradient_has_the_right_gradient(name):
    a, b = rows(N, D).requires_grad_(), rows(N, D, seed=1).requires_grad_()
    t = torch.tensor(0.6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *inputs: TWO_VIEWS[name](*inputs), (a, b, t))


def test_every_public_loss_is_among_them():
    helpers = {"dec_target", "ring_logsumexp", "sinkhorn", "rbf_targets", "student_t_assignment", "non_negative"}
    functions = {name for name in L.__all__ if inspect.isfunction(getattr(L, name))} - helpers
    assert functions <= {name.split()[0] for name in TWO_VIEWS}


@pytest.mark.parametrize("name", ["nt_xent", "clip_loss", "siglip"])
def test_a_third_derivative_is_right_too(name):
    b, direction = rows(N, D, seed=1), rows(N, D, seed=2)

    def along(a):
        loss = TWO_VIEWS[name](a, b, torch.tensor(0.6, dtype=torch.double))
        (first,) = torch.autograd.grad(loss, a, create_graph=True)
        return (first * direction).sum()

    assert torch.autograd.gradgradcheck(along, rows(N, D).requires_grad_())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor made."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.seen = max(self.seen, each.numel())
        return out


@pytest.mark.parametrize("name", ["nt_xent", "clip_loss", "siglip", "sup_con"])
def test_a_gradient_penalty_holds_no_matrix_of_pairs(name):
    side = 16
    calls = {
        "nt_xent": lambda x: L.nt_xent(x, b, tile=side),
        "clip_loss": lambda x: L.clip_loss(x, b, tile=side),
        "siglip": lambda x: L.siglip(x, b, tile=side),
        "sup_con": lambda x: L.sup_con(x, torch.arange(128) % 8, tile=side),
    }
    b = rows(128, D, seed=1)
    x = rows(128, D).requires_grad_()
    with Largest() as largest:
        (first,) = torch.autograd.grad(calls[name](x), x, create_graph=True)
        first.square().sum().backward()
    assert largest.seen <= max(side * side, 2 * 128 * D)


def test_the_sign_s_estimator_is_linear_in_what_comes_from_above():
    x = rows(5).requires_grad_()
    (first,) = torch.autograd.grad((sign_ste(x) * x**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = (x.abs() <= 1).to(x)
    # d/dx [2 x s + x^2 1] with s' = 1 inside.
    torch.testing.assert_close(second, (2 * sign_ste(x) + 4 * x * inside).detach())
