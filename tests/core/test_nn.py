"""Teachers, prototypes and heads: closed forms, dense references, invariances, gradients."""

import math

import pytest
import torch
from contrastive_core.nn import (
    AttentionPooling,
    EMATeacher,
    GaussianHead,
    HashHead,
    PrototypeHead,
    Temperature,
    WeibullHead,
    entropy_reliability,
    fuse_prototypes,
    match_prototypes,
    mlp_head,
    multi_prototype_logits,
    rbf_kernel,
    sigmoid_rampup,
    sign_ste,
    soft_kmeans,
    squared_distances,
)
from scipy.special import gamma
from torch import nn


def rand(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def moved(student, steps=1):
    for _ in range(steps):
        student.train()(torch.randn(8, 3))
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
    return student


def values(module):
    return torch.cat([each.flatten() for each in module.parameters()])


class TestEMATeacher:
    def test_momentum_zero_copies_and_one_freezes(self):
        student = network()
        copying, frozen = EMATeacher(student, 0.0), EMATeacher(student, 1.0, buffers="own")
        before = values(frozen).clone()
        moved(student)
        copying.update(student)
        frozen.update(student)
        assert torch.equal(values(copying.module), values(student))
        assert torch.equal(values(frozen.module), before)

    def test_warm_copies_bit_for_bit_then_halves(self):
        student = network()
        teacher = EMATeacher(student, 0.99, warm=True)
        moved(student)
        teacher.update(student)
        assert torch.equal(values(teacher.module), values(student))
        old = values(student).clone()
        moved(student)
        teacher.update(student)
        torch.testing.assert_close(values(teacher.module), (old + values(student)) / 2)
        assert teacher.momentum_at(1) == 0.5
        assert teacher.momentum_at(10_000) == 0.99

    def test_cosine_rises_to_one(self):
        teacher = EMATeacher(network(), 0.9, total_steps=100)
        assert [round(teacher.momentum_at(t), 6) for t in (0, 50, 100, 500)] == [0.9, 0.95, 1.0, 1.0]

    @pytest.mark.parametrize("mode", ["copy", "ema", "own"])
    def test_buffers_follow_the_mode(self, mode):
        student = network()
        teacher = EMATeacher(student, 0.75, buffers=mode)
        start = student[1].running_mean.clone()
        moved(student, 2)
        teacher.update(student)
        theirs, mine = student[1].running_mean, teacher.module[1].running_mean
        want = {"copy": theirs, "ema": 0.75 * start + 0.25 * theirs, "own": start}[mode]
        torch.testing.assert_close(mine, want)
        assert int(teacher.module[1].num_batches_tracked) == (0 if mode == "own" else 2)

    def test_no_gradient_and_the_state_continues(self):
        student = network()
        teacher = EMATeacher(student, 0.9, warm=True)
        moved(student)
        teacher.update(student)
        assert not teacher(torch.randn(4, 3)).requires_grad
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        again = EMATeacher(network(), 0.9, warm=True)
        again.load_state_dict(teacher.state_dict())
        moved(student)
        teacher.update(student)
        again.update(student)
        assert torch.equal(values(again.module), values(teacher.module))
        assert int(again.updates) == 2

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_half_precision_moves_in_float32(self, when):
        student = nn.Linear(4, 4)
        if when == "before":
            student.bfloat16()
        teacher = EMATeacher(student, 0.999)
        start = student.weight.detach().float().clone()
        student.bfloat16(), teacher.bfloat16()
        with torch.no_grad():
            student.weight.add_(1)
        for _ in range(100):
            teacher.update(student)
        want = student.weight.float() + 0.999**100 * (start - student.weight.float())
        assert teacher.module.weight.dtype == torch.bfloat16
        # bfloat16 alone would not have moved at all: 0.001 is below half of its spacing near 1.
        torch.testing.assert_close(teacher.module.weight.float(), want, atol=1e-2, rtol=0)
        assert "master_weight" in teacher.state_dict()
        teacher.float()
        assert "master_weight" not in teacher.state_dict()
        torch.testing.assert_close(teacher.module.weight, want, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("wrong", [{"momentum": 1.1}, {"total_steps": 0}, {"final": -1.0}])
    def test_bad_settings(self, wrong):
        with pytest.raises(ValueError, match=r"momentum|total_steps"):
            EMATeacher(network(), **wrong)

    def test_another_network_is_refused(self):
        with pytest.raises(ValueError, match="not the network"):
            EMATeacher(network()).update(nn.Linear(3, 4))


def test_rampup():
    assert sigmoid_rampup(0, 300) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(150, 300) == pytest.approx(math.exp(-1.25))
    assert sigmoid_rampup(300, 300) == sigmoid_rampup(999, 300) == sigmoid_rampup(5, 0) == 1
    ramp = [sigmoid_rampup(x, 300) for x in range(301)]
    assert ramp == sorted(ramp)
    with pytest.raises(ValueError, match="length"):
        sigmoid_rampup(1, -1)


class TestSoftKMeans:
    @staticmethod
    def dense(x, c, iters, weigh, e=None, q=None, w=0.0):
        for _ in range(iters):
            d = (x[:, None] - c).norm(dim=2)
            d = d if e is None else d + w * (e[:, None] - q).norm(dim=2)
            a = weigh(d)
            a = a / a.sum(1, keepdim=True)
            c = a.T @ x / a.sum(0)[:, None]
            q = None if e is None else a.T @ e / a.sum(0)[:, None]
        return c, a

    @pytest.mark.parametrize("chunk", [7, 65_536])
    @pytest.mark.parametrize("kind", ["sharp", "l2"])
    def test_equals_the_dense_formula_with_gradient(self, kind, chunk):
        x, e = rand(30, 5).requires_grad_(), rand(30, 3, seed=1)
        weigh = {
            "sharp": lambda d: torch.exp(-10 * d / d.detach().mean()),
            "l2": lambda d: torch.exp(-(d**0.5) / 0.3),
        }[kind]
        start = 0.9 * x[:4].detach() + 0.2
        want = self.dense(x, start, 4, weigh, e, e[:4], 0.5)
        got = soft_kmeans(
            x,
            start,
            iters=4,
            assignment=kind,
            power=0.5,
            temperature=0.3,
            extra=e,
            init_extra=e[:4],
            extra_weight=0.5,
            chunk=chunk,
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        probe = rand(4, 5, seed=2)
        mine, theirs = (torch.autograd.grad((c * probe).sum(), x)[0] for c, _ in (got, want))
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=0)

    @pytest.mark.parametrize("chunk", [7, 65_536])
    def test_gradient_of_the_means_leaves_the_assignment_alone(self, chunk):
        x, start = rand(30, 5).requires_grad_(), rand(4, 5, seed=1).requires_grad_()
        options = {"iters": 4, "extra": rand(30, 3, seed=2), "init_extra": rand(4, 3, seed=3), "extra_weight": 0.5}
        whole, _ = soft_kmeans(x, start, chunk=chunk, **options)
        centers, assigned = soft_kmeans(x, start, chunk=chunk, gradient="means", **options)
        torch.testing.assert_close(centers, whole)
        assert not assigned.requires_grad
        probe = rand(4, 5, seed=4)
        mine, beginning = torch.autograd.grad((centers * probe).sum(), (x, start), allow_unused=True)
        torch.testing.assert_close(mine, (assigned / assigned.sum(0)) @ probe)
        assert beginning is None

    def test_gradcheck(self):
        x, c = rand(9, 2).requires_grad_(), rand(3, 2, seed=3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, c: soft_kmeans(x, c, iters=3, assignment="l2"), (x, c))

    def test_one_centre_is_the_mean(self):
        x = rand(50, 3)
        torch.testing.assert_close(soft_kmeans(x, x[:1])[0][0], x.mean(0))

    def test_sharp_keeps_apart_what_the_published_form_collapses(self):
        modes = torch.eye(3, 8, dtype=torch.double).repeat_interleave(40, 0)
        x = modes + 0.05 * rand(120, 8)
        sharp = soft_kmeans(x, x[[0, 40, 80]])[0]
        flat = soft_kmeans(x, x[[0, 40, 80]], assignment="l2", power=0.5)[0]
        off = ~torch.eye(3, dtype=torch.bool)
        cosine = [(c / c.norm(dim=1, keepdim=True)) @ (c / c.norm(dim=1, keepdim=True)).T for c in (sharp, flat)]
        assert cosine[0][off].max() < 0.2
        assert cosine[1][off].min() > 0.95

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_far_from_the_origin_and_identical_rows(self, dtype):
        x = torch.ones(20, 4, dtype=dtype, requires_grad=True)
        centers, assigned = soft_kmeans(x * 100, x[:3] * 100)
        assert centers.dtype == dtype
        torch.testing.assert_close(centers, torch.full((3, 4), 100, dtype=dtype))
        centers.sum().backward()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(assigned).all()

    @pytest.mark.unchecked
    def test_an_unknown_gradient(self):
        with pytest.raises(ValueError, match="gradient is one of"):
            soft_kmeans(rand(4, 2), rand(2, 2), gradient="mean")

    @pytest.mark.parametrize(
        "wrong", [{"iters": 0}, {"beta": 0.0}, {"power": -1.0}, {"temperature": 0.0}, {"chunk": 0}]
    )
    def test_bad_options(self, wrong):
        with pytest.raises(ValueError, match=r"at least|positive"):
            soft_kmeans(rand(4, 2), rand(2, 2), **wrong)
        with pytest.raises(ValueError, match="rows and centres"):
            soft_kmeans(rand(0, 2), rand(2, 2))
        with pytest.raises(ValueError, match="together"):
            soft_kmeans(rand(4, 2), rand(2, 2), extra=rand(4, 1))


class TestPrototypes:
    @pytest.mark.parametrize("reduce", ["max", "mean", "logsumexp"])
    def test_repeated_prototypes_change_nothing_nor_do_norms(self, reduce):
        x, p = rand(6, 5), rand(3, 2, 5, seed=1)
        logits = multi_prototype_logits(x, p, scale=3.0, reduce=reduce)
        torch.testing.assert_close(logits, multi_prototype_logits(x, p.repeat(1, 2, 1), scale=3.0, reduce=reduce))
        torch.testing.assert_close(logits, multi_prototype_logits(7 * x, 0.1 * p, scale=3.0, reduce=reduce))
        single = multi_prototype_logits(x, p[:, :1], reduce=reduce)
        torch.testing.assert_close(single, torch.cosine_similarity(x[:, None], p[:, 0], dim=2))

    def test_zero_features_are_finite(self):
        x = torch.zeros(2, 3, requires_grad=True)
        multi_prototype_logits(x, torch.randn(2, 2, 3)).sum().backward()
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize("match", ["key", "hungarian"])
    def test_matching_undoes_a_shuffle(self, match):
        a = rand(4, 3, 6)
        order = torch.tensor([[2, 0, 1], [0, 2, 1], [1, 2, 0], [0, 1, 2]])
        b = a.gather(1, order[..., None].expand_as(a))
        key = rand(4, 3, seed=5)
        keys = {"key_a": key, "key_b": key.gather(1, order)} if match == "key" else {}
        partner = match_prototypes(a, b, match=match, **keys)
        torch.testing.assert_close(b.gather(1, partner[..., None].expand_as(b)), a)
        torch.testing.assert_close(fuse_prototypes(a, b, 0.3, match=match, **keys), a)
        assert not torch.allclose(fuse_prototypes(a, b, 0.3), a)

    def test_absent_classes_come_from_the_other_source(self):
        a, b = rand(4, 2, 3), rand(4, 2, 3, seed=1)
        here, there = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
        fused = fuse_prototypes(a, b, 0.5, present_a=here, present_b=there)
        torch.testing.assert_close(fused[0], (a[0] + 0.5 * b[0]) / 1.5)
        assert torch.equal(fused[1], a[1])
        assert torch.equal(fused[2], b[2])
        assert torch.equal(fused[3], torch.zeros(2, 3).double())

    def test_gradient_goes_where_the_weight_is(self):
        a, b = rand(2, 2, 3).requires_grad_(), rand(2, 2, 3, seed=1).requires_grad_()
        fuse_prototypes(a, b, 0.0).sum().backward()
        assert torch.equal(a.grad, torch.ones_like(a))
        assert torch.equal(b.grad, torch.zeros_like(b))

    def test_keys_are_needed(self):
        with pytest.raises(ValueError, match="key_a"):
            fuse_prototypes(rand(1, 2, 3), rand(1, 2, 3), 1.0, match="key")


class TestReliability:
    def test_sum_and_log_c(self):
        p = torch.softmax(rand(2, 3, 4, 5), 1)
        entropy = -(p * p.log()).sum(1)
        torch.testing.assert_close(entropy_reliability(p), 1 - entropy / math.log(3))
        torch.testing.assert_close(entropy_reliability(p, "sum"), 1 - entropy / entropy.sum((1, 2), keepdim=True))
        flat = p.movedim(1, -1).reshape(-1, 3)
        torch.testing.assert_close(entropy_reliability(flat, "sum"), 1 - entropy.flatten() / entropy.sum())

    def test_certainty_is_one_in_both(self):
        p = torch.tensor([[1.0, 0.0]]).T[None].expand(1, 2, 3)
        certain = torch.zeros(1, 2, 3)
        certain[:, 0] = 1
        assert p.shape == certain.shape
        for mode in ("sum", "log_c"):
            assert torch.equal(entropy_reliability(certain, mode), torch.ones(1, 3))
        with pytest.raises(ValueError, match="two classes"):
            entropy_reliability(torch.ones(3, 1))


class TestPosteriorHeads:
    def test_weibull_mean_is_the_head_s_mean(self):
        head = WeibullHead(6, 4).double()
        x = rand(9, 6)
        shape, scale = head(x)
        mean = scale * torch.from_numpy(gamma(1 + 1 / shape.detach().numpy()))
        torch.testing.assert_close(mean, nn.functional.softplus(head.mean(x)), atol=1e-9, rtol=1e-9)
        assert (shape >= 1).all()

    @pytest.mark.parametrize("activation", ["softplus", "rep_relu"])
    @pytest.mark.parametrize("size", [1e-3, 1e4])
    def test_weibull_is_finite_at_the_extremes(self, activation, size):
        head = WeibullHead(6, 4, mean_activation=activation)
        x = (size * rand(9, 6, dtype=torch.float)).requires_grad_()
        shape, scale = head(x)
        (shape.sum() + scale.sum()).backward()
        assert torch.isfinite(x.grad).all()
        assert (scale > 0).all()
        assert shape.max() <= 100

    def test_heads_stay_in_float32_under_autocast(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = nn.Linear(6, 6)(torch.randn(3, 6))
            outputs = [*GaussianHead(6, 4)(x), *WeibullHead(6, 4)(x)]
        assert x.dtype == torch.bfloat16
        assert {each.dtype for each in outputs} == {torch.float32}

    def test_gaussian_starts_narrow_and_stays_in_range(self):
        head = GaussianHead(6, 4)
        loc, log_var = head(torch.zeros(2, 6))
        assert loc.shape == (2, 4)
        assert torch.equal(log_var, torch.full((2, 4), -3.0))
        assert head(1e6 * torch.randn(50, 6)).log_var.abs().max() <= 8
        assert GaussianHead(6, 4, gain=0.0).loc.weight.abs().max() == 0

    def test_bad_ranges(self):
        with pytest.raises(ValueError, match="range"):
            GaussianHead(2, 2, log_var_range=(1.0, 1.0))
        with pytest.raises(ValueError, match="shape_min"):
            WeibullHead(2, 2, shape_min=0.1)


def test_the_sign_lets_the_gradient_through_near_zero():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.double, requires_grad=True)
    assert sign_ste(x).tolist() == [-1, -1, 1, 1, 1]
    assert torch.autograd.grad(sign_ste(x).sum(), x)[0].tolist() == [0, 1, 1, 1, 0]


class TestHeads:
    def test_layers_are_what_the_options_say(self):
        kinds = [type(layer).__name__ for layer in mlp_head([8, 16, 16, 4], last_norm="bn_noaffine")]
        assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
        head = mlp_head([8, 16, 4], hidden_norm="ln", act="gelu", last_norm="l2")
        assert [type(layer).__name__ for layer in head] == ["Linear", "LayerNorm", "GELU", "Linear", "UnitRows"]
        torch.testing.assert_close(head(torch.randn(5, 8)).norm(dim=1), torch.ones(5))
        assert [type(layer).__name__ for layer in mlp_head([8, 4], hidden_norm="none")] == ["Linear"]

    def test_biases_that_a_batch_norm_cancels_are_left_out(self):
        plain, kept = mlp_head([8, 16, 4]), mlp_head([8, 16, 4], bias_before_norm=True, last_norm="bn")
        assert plain[0].bias is None
        assert plain[-1].bias is not None
        assert kept[0].bias is not None
        assert mlp_head([8, 4], last_norm="bn")[0].bias is None
        assert mlp_head([8, 4], last_norm="bn_noaffine")[1].weight is None

    @pytest.mark.unchecked
    @pytest.mark.parametrize("wrong", [{"dims": [8]}, {"hidden_norm": "gn"}, {"act": "tanh"}, {"last_norm": "x"}])
    def test_bad_options(self, wrong):
        with pytest.raises(ValueError, match=r"widths|norm|act"):
            mlp_head(**({"dims": [8, 4]} | wrong))

    def test_prototype_head_gives_cosines_whatever_the_norms(self):
        head = PrototypeHead(4, 6)
        x = torch.randn(3, 4)
        cosine = head(x)
        with torch.no_grad():
            head.weight.mul_(5)
        torch.testing.assert_close(head(7 * x), cosine)
        torch.testing.assert_close(cosine[:, 2], torch.cosine_similarity(x, head.weight[2:3]))

    def test_hash_head_sharpens_towards_its_codes(self):
        head = HashHead(8, 16, beta=(1, 100))
        x = torch.randn(10, 8)
        gaps = []
        for progress in (0, 0.5, 1, 2):
            head.set_progress(progress)
            gaps.append(float((head(x) - head.codes(x)).abs().mean().detach()))
        assert gaps[0] > gaps[1] > gaps[2] == gaps[3]
        assert head.beta == 100
        again = HashHead(8, 16)
        again.load_state_dict(head.state_dict())
        assert torch.equal(again(x), head(x))
        ste = HashHead(8, 16, mode="ste")
        assert torch.equal(ste(x), ste.codes(x))
        ste(x).sum().backward()
        assert ste.linear.weight.grad.abs().sum() > 0
        with pytest.raises(ValueError, match="beta"):
            HashHead(8, 16, beta=(0, 1))


class TestPooling:
    @pytest.mark.parametrize("gated", [True, False])
    def test_masked_instances_do_not_matter_and_order_does_not(self, gated):
        pool = AttentionPooling(4, gated=gated).double()
        x = rand(2, 5, 4)
        mask = torch.tensor([[True, True, True, False, False], [True] * 5])
        pooled, weight = pool(x, mask)
        torch.testing.assert_close(weight.sum(1), torch.ones(2).double(), atol=1e-6, rtol=0)
        assert (weight[0, 3:] == 0).all()
        torch.testing.assert_close(pooled[:1], pool(x[:1, :3])[0])
        order = torch.tensor([4, 2, 0, 1, 3])
        torch.testing.assert_close(pool(x[:, order], mask[:, order])[0], pooled)

    def test_an_empty_bag_is_zero_and_finite(self):
        x = torch.randn(1, 3, 4, requires_grad=True)
        pooled, _ = AttentionPooling(4)(x, torch.zeros(1, 3, dtype=torch.bool))
        pooled.sum().backward()
        assert torch.equal(pooled, torch.zeros(1, 4))
        assert torch.isfinite(x.grad).all()


class TestTemperature:
    def test_learnable_stays_in_its_bounds_and_comes_back(self):
        temperature = Temperature(0.02, kind="learnable")
        optimiser = torch.optim.SGD(temperature.parameters(), lr=1.0)
        temperature().mul(1000).backward()
        optimiser.step()
        temperature.clamp_()
        assert temperature().item() == pytest.approx(0.01)
        optimiser.zero_grad()
        (-temperature()).backward()
        assert temperature.log_scale.grad != 0

    def test_cosine_goes_between_the_bounds_and_resumes(self):
        temperature = Temperature(0.1, kind="cosine", bounds=(0.1, 0.5), period=10)
        values = []
        for _ in range(11):
            values.append(round(temperature().item(), 6))
            temperature.advance()
        assert (values[0], values[5], values[10]) == (0.1, 0.5, 0.1)
        again = Temperature(0.1, kind="cosine", bounds=(0.1, 0.5), period=10)
        again.load_state_dict(temperature.state_dict())
        assert again() == temperature()
        assert not list(again.parameters())

    @pytest.mark.unchecked
    @pytest.mark.parametrize("wrong", [{"value": 2.0}, {"kind": "x"}, {"kind": "cosine"}, {"period": 3}])
    def test_bad_settings(self, wrong):
        with pytest.raises(ValueError, match=r"needs|kind|period"):
            Temperature(**wrong)


class TestKernels:
    def test_distances_far_from_the_origin(self):
        x, y = rand(7, 3), rand(5, 3, seed=1)
        far = squared_distances((x + 1000).float(), (y + 1000).float())
        torch.testing.assert_close(far.double(), torch.cdist(x, y).square(), atol=2e-3, rtol=0)
        assert squared_distances(x, x).diagonal().max() < 1e-12

    @pytest.mark.parametrize("mode", ["median", "mean", "multi"])
    def test_widths(self, mode):
        x, y = rand(7, 3), rand(6, 3, seed=1)
        distances = torch.pdist(torch.cat([x, y]))
        width = distances.mean() if mode == "mean" else distances.median()
        factors = (0.5, 1, 2) if mode == "multi" else (1,)
        want = sum(torch.exp(-(torch.cdist(x, y) ** 2) / (2 * (f * width) ** 2)) for f in factors) / len(factors)
        torch.testing.assert_close(rbf_kernel(x, y, sigma=mode), want)
        assert torch.equal(rbf_kernel(x[:1], x[:1], sigma=mode), torch.ones(1, 1).double())

    def test_gradient_at_equal_rows_is_zero(self):
        x = torch.ones(3, 2, requires_grad=True)
        rbf_kernel(x, torch.ones(2, 2), sigma=1).sum().backward()
        assert torch.equal(x.grad, torch.zeros(3, 2))
        with pytest.raises(ValueError, match="positive"):
            rbf_kernel(x, x, sigma=0)
