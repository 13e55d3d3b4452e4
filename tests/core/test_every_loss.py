"""What holds of every public loss: second derivatives, torch.func, compilers, temperatures of shape [1]."""

import inspect
import subprocess
import sys

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


def both(name, call=None):
    """Value and gradient at fixed views."""
    a, b = rows(N, D).requires_grad_(), rows(N, D, seed=1)
    value = (call or TWO_VIEWS[name])(a, b, torch.tensor(0.6, dtype=torch.double)).sum()
    return value.detach(), torch.autograd.grad(value, a)[0] if value.requires_grad else torch.zeros_like(a)


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_transforms_of_torch_func_give_the_gradient_and_map_over_batches(name):
    a, b, t = rows(N, D), rows(N, D, seed=1), torch.tensor(0.6, dtype=torch.double)
    gradient = torch.func.grad(lambda a: TWO_VIEWS[name](a, b, t).sum())(a)
    torch.testing.assert_close(gradient, both(name)[1])
    many = torch.stack([a, b, a + b]), torch.stack([b, b + 1, a])
    mapped = torch.func.vmap(lambda a, b: TWO_VIEWS[name](a, b, t))(*many)
    torch.testing.assert_close(mapped, torch.stack([TWO_VIEWS[name](a, b, t) for a, b in zip(*many, strict=True)]))


def test_meta_tensors_have_a_shape_or_are_refused():
    a = torch.empty(N, D, device="meta")
    for loss in (L.nt_xent, L.info_nce, L.clip_loss, L.siglip, L.barlow_twins, L.vicreg, L.decoupled, L.soft_info_nce):
        assert loss(a, a).shape == ()
    with pytest.raises(ValueError, match="meta tensors"):
        L.sup_con(a, torch.empty(N, dtype=torch.long, device="meta"))
    with pytest.raises(ValueError, match="under vmap"):
        torch.func.vmap(lambda y: L.sup_con(OTHER, y))(LABELS.repeat(2, 1))


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_a_temperature_of_shape_one_is_a_number(name):
    a, b = rows(N, D).requires_grad_(), rows(N, D, seed=1)
    if name in ("pair_logsumexp", "self_logsumexp"):
        pytest.skip("take a scalar")
    t = torch.tensor([0.6], dtype=torch.double, requires_grad=True)
    value = TWO_VIEWS[name](a, b, t)
    assert value.shape == ()
    if not value.requires_grad:
        pytest.skip("depends on constants only")
    (gradient,) = torch.autograd.grad(value, t, allow_unused=True)
    scalar = t.detach().reshape(()).requires_grad_()
    (expected,) = torch.autograd.grad(TWO_VIEWS[name](a, b, scalar), scalar, allow_unused=True)
    assert (gradient is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(gradient, expected.reshape(1))


COMPILED = """
import torch
from contrastive_core import losses as L

torch.set_num_threads(1)
a, b = (torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
labels = torch.arange(20) % 5
CALLS = {
    "nt_xent": lambda a, b: L.nt_xent(a, b, temperature=0.2),
    "siglip tiles": lambda a, b: L.siglip(a, b, tile=8),
    "nt_xent tiles": lambda a, b: L.nt_xent(a * 2, b, temperature=0.2, tile=8).exp(),
    "sup_con": lambda a, b: L.sup_con(a * b, labels),
}
for name, call in CALLS.items():
    torch._dynamo.reset()
    backend = "inductor" if name == "nt_xent" else "aot_eager"
    expected, value = call(a, b), torch.compile(call, backend=backend)(a, b)
    torch.testing.assert_close(value, expected)
    for g, r in zip(torch.autograd.grad(value, (a, b)), torch.autograd.grad(expected, (a, b))):
        torch.testing.assert_close(g, r)
"""


def test_compiled_losses_are_the_same():
    """In one graph where the problem is one tile, around the kernel where it is many."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
