"""Every loss beyond the softmax kernel: dense references, closed forms, gradcheck, and refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_core import losses as L
from torch.utils._python_dispatch import TorchDispatchMode

LOW = float("-inf")


def rows(*shape, seed=0, dtype=torch.double, grad=True):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.requires_grad_() if grad else x


def same(ours, reference, *inputs):
    torch.testing.assert_close(ours, reference, atol=1e-10, rtol=1e-10)
    for g, r in zip(
        torch.autograd.grad(ours, inputs, retain_graph=True),
        torch.autograd.grad(reference, inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(g, r, atol=1e-9, rtol=1e-9)


def dense_views(a, b, t):
    """Similarities of all views, without self; the positive's column."""
    z = F.normalize(torch.cat([a, b]))
    s = z @ z.T / t
    index = torch.arange(len(z))
    return s, index, index.roll(len(a))


class TestHardNegatives:
    def dense(self, a, b, t, beta, tau, ids):
        s, index, partner = dense_views(a, b, t)
        item = ids.repeat(2)
        positive = s[index, partner].exp()
        keep = (item[:, None] != item[None]).to(s)
        e = s.exp() * keep
        weight = (beta * s).exp() * keep
        n = keep.sum(1)
        mean = (weight * e).sum(1) / (weight.sum(1) / n)
        g = torch.maximum((mean - tau * n * positive) / (1 - tau), n * math.exp(-1 / t))
        return -(positive / (positive + g)).log().mean()

    @pytest.mark.parametrize("tile", [None, 3])
    @pytest.mark.parametrize(("beta", "tau"), [(1.0, 0.1), (0.5, 0.0), (0.0, 0.1), (2.0, 0.6)])
    def test_equals_the_dense_formula(self, beta, tau, tile):
        a = rows(9, 5)
        b = (a + 0.3 * rows(9, 5, seed=1)).detach().requires_grad_()  # close positives reach the floor
        for ids in (torch.arange(9), torch.arange(9) // 2):
            ours = L.hard_negative(a, b, temperature=0.5, beta=beta, tau_plus=tau, ids=ids, tile=tile)
            same(ours, self.dense(a, b, 0.5, beta, tau, ids), a, b)
        if beta == 0:
            assert torch.equal(L.debiased(a, b, tau_plus=tau), L.hard_negative(a, b, beta=0.0, tau_plus=tau))

    def test_the_floor_is_reached_and_has_no_nan(self):
        a = torch.eye(6, dtype=torch.double).requires_grad_()
        # Positives are equal, negatives orthogonal: the estimate is negative, the floor is all that is left.
        loss = L.hard_negative(a, a.detach(), temperature=0.5, beta=0.0, tau_plus=0.5)
        assert float(loss.detach()) == pytest.approx(math.log1p(10 * math.exp(-4)))
        assert torch.isfinite(torch.autograd.grad(loss, a)[0]).all()

    def test_one_pair_has_no_negatives(self):
        a = rows(1, 3)
        for loss in (L.hard_negative(a, a), L.debiased(a, a), L.decoupled(a, a)):
            assert float(loss.detach()) == 0
            assert torch.equal(torch.autograd.grad(loss, a)[0], torch.zeros_like(a))

    def test_gradcheck_with_a_learned_temperature(self):
        a, b, t = rows(4, 3), rows(4, 3, seed=1), torch.tensor(0.4, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a, b, t: L.hard_negative(a, b, temperature=t), (a, b, t))
        assert torch.autograd.gradcheck(lambda a, b, t: L.decoupled(a, b, temperature=t), (a, b, t))


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_equals_the_dense_formula(sigma):
    a, b, t = rows(7, 4), rows(7, 4, seed=1), 0.2
    s, index, partner = dense_views(a, b, t)
    positive = s[index, partner]
    negatives = s.masked_fill((index[:, None] - index[None]) % 7 == 0, LOW).logsumexp(1)
    weight = 1.0
    if sigma is not None:
        cosine = (positive * t).detach()[:7]
        weight = (2 - 7 * (cosine / sigma).softmax(0)).repeat(2)
    same(L.decoupled(a, b, temperature=t, sigma=sigma, tile=4), (negatives - weight * positive).mean(), a, b)


@pytest.mark.parametrize("tile", [2, 5, 1024])
def test_siglip_equals_the_dense_formula(tile):
    a, b = rows(7, 4), rows(7, 4, seed=1)
    scale, bias = (torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (3.0, -2.0))
    z = F.normalize(a) @ F.normalize(b).T * scale + bias
    y = 2 * torch.eye(7, dtype=torch.double) - 1
    ours = L.siglip(a, b, logit_scale=scale, logit_bias=bias, tile=tile)
    same(ours, -F.logsigmoid(y * z).sum() / 7, a, b, scale, bias)
    ids = torch.arange(7) // 2
    keep = (ids[:, None] != ids[None]) | torch.eye(7, dtype=torch.bool)
    ours = L.siglip(a, b, logit_scale=scale, logit_bias=bias, tile=tile, ids=ids)
    same(ours, -(F.logsigmoid(y * z) * keep).sum() / 7, a, b, scale, bias)


def test_siglip_module_learns_scale_and_bias():
    a, b = rows(6, 4), rows(6, 4, seed=1)
    module = L.SigLIP().double()
    torch.testing.assert_close(module(a, b), L.siglip(a, b))
    module(a, b).backward()
    assert float(module.log_scale.grad.abs()) > 0
    assert float(module.bias.grad.abs()) > 0


def test_moco_v3_is_two_directions_of_cross_entropy():
    qa, qb, ka, kb = (rows(6, 4, seed=seed) for seed in range(4))
    t = 0.2

    def one(q, k):
        return 2 * t * F.cross_entropy(F.normalize(q) @ F.normalize(k.detach()).T / t, torch.arange(6))

    same(L.moco_v3(qa, qb, ka, kb, temperature=t), one(qa, kb) + one(qb, ka), qa, qb)
    assert torch.autograd.grad(L.moco_v3(qa, qb, ka, kb), ka, allow_unused=True)[0] is None


class TestSpectral:
    def dense(self, m1, v1, m2, v2, both, exclude):
        n = len(m1)
        zero = torch.zeros_like(m1)
        v1, v2 = (zero if v is None else v for v in (v1, v2))

        def pairs(m, v, k, w):
            square = (m @ k.T).square() + m.square() @ w.T + v @ k.square().T + v @ w.T
            if exclude:
                return square[~torch.eye(n, dtype=torch.bool)].mean()
            return square.mean()

        terms = [pairs(m1, v1, m2, v2)]
        if both:
            terms += [pairs(m2, v2, m1, v1), pairs(m1, v1, m1, v1), pairs(m2, v2, m2, v2)]
        return -2 * (m1 * m2).sum(1).mean() + torch.stack(terms).mean()

    @pytest.mark.parametrize("exclude", [True, False])
    @pytest.mark.parametrize("both", [True, False])
    def test_equals_the_dense_formula(self, both, exclude):
        m1, m2 = rows(8, 5), rows(8, 5, seed=1)
        v1, v2 = (rows(8, 5, seed=seed, grad=False).square().requires_grad_() for seed in (2, 3))
        options = {"negatives": "both" if both else "other", "exclude_self": exclude}
        same(
            L.spectral_contrastive(m1, v1, m2, v2, **options),
            self.dense(m1, v1, m2, v2, both, exclude),
            *(m1, v1, m2, v2),
        )
        same(
            L.spectral_contrastive(m1, None, m2, None, **options),
            self.dense(m1, None, m2, None, both, exclude),
            *(m1, m2),
        )
        same(
            L.spectral_contrastive(m1, v1, m2, None, **options), self.dense(m1, v1, m2, None, both, exclude), m1, v1, m2
        )

    def test_variances_are_the_expectation_over_samples(self):
        m1, m2 = rows(6, 3, grad=False), rows(6, 3, seed=1, grad=False)
        v1, v2 = torch.full_like(m1, 0.2), torch.full_like(m2, 0.4)
        generator = torch.Generator().manual_seed(2)
        values = torch.stack(
            [
                L.spectral_contrastive(
                    m1 + v1.sqrt() * torch.randn(6, 3, generator=generator, dtype=torch.double),
                    None,
                    m2 + v2.sqrt() * torch.randn(6, 3, generator=generator, dtype=torch.double),
                )
                for _ in range(3000)
            ]
        )
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - float(L.spectral_contrastive(m1, v1, m2, v2))) < 4 * error

    def test_a_large_batch_builds_no_matrix_of_pairs(self):
        m1, m2 = (rows(8192, 256, seed=seed, dtype=torch.float32, grad=False) for seed in (0, 1))
        v = torch.ones_like(m1)
        with Largest() as largest:
            loss = L.spectral_contrastive(m1.requires_grad_(), v, m2, v)
            loss.backward()
        assert largest.elements <= 8192 * 256

    @pytest.mark.unchecked
    def test_refusals(self):
        x = rows(3, 2)
        for arguments in ((x,), (x, None, rows(2, 2)), (x, rows(2, 2), x), (x[:1], None, x[:1])):
            with pytest.raises(ValueError, match="expected"):
                L.spectral_contrastive(*arguments)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_streamed_losses_hold_one_tile():
    a, b = (rows(2304, 16, seed=seed, dtype=torch.float32) for seed in (0, 1))
    labels = torch.arange(2304) % 11
    for loss in (
        lambda: L.siglip(a, b),
        lambda: L.hard_negative(a, b),
        lambda: L.decoupled(a, b, sigma=0.5),
        lambda: L.mmd(a, b, sigma=4.0),
        lambda: L.relational_distillation(a, b, student_temperature=0.5),
        lambda: L.proto_nce(a, labels, b),
        lambda: L.cka(a, b),
    ):
        with Largest() as largest:
            loss().backward()
        assert largest.elements <= 1024 * 1024


class TestCosine:
    def test_values_and_stopped_gradient(self):
        p, z = rows(5, 3), rows(5, 3, seed=1)
        same(L.negative_cosine(p, z), -F.cosine_similarity(p, z.detach()).mean(), p)
        assert torch.autograd.grad(L.negative_cosine(p, z), z, allow_unused=True)[0] is None
        same(L.negative_cosine(p, z, stop_gradient=False), -F.cosine_similarity(p, z).mean(), p, z)
        same(L.byol(p, z), (F.normalize(p) - F.normalize(z.detach())).square().sum(1).mean(), p)


class TestMoments:
    def test_barlow_twins(self):
        a, b = rows(12, 5), rows(12, 5, seed=1)
        za, zb = (F.batch_norm(x, None, None, training=True) for x in (a, b))
        c = za.T @ zb / 12
        eye = torch.eye(5, dtype=torch.bool)
        reference = (c[eye] - 1).square().sum() + 0.02 * c[~eye].square().sum()
        same(L.barlow_twins(a, b, off_diagonal=0.02), reference, a, b)

    def test_vicreg(self):
        a, b = rows(12, 5), rows(12, 5, seed=1)

        def one(x):
            off = torch.cov(x.T)[~torch.eye(5, dtype=torch.bool)]
            return 12.5 * F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean(), off.square().sum() / 5

        reference = 25 * F.mse_loss(a, b) + sum(one(a)) + sum(one(b))
        same(L.vicreg(a, b), reference, a, b)

    def test_a_collapsed_batch_is_finite(self):
        x = torch.ones(6, 3, requires_grad=True)
        for loss in (L.barlow_twins(x, x), L.vicreg(x, x)):
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()

    def test_one_row_is_refused_with_the_batch_size(self):
        for loss in (L.barlow_twins, L.vicreg):
            with pytest.raises(ValueError, match="batch of 1"):
                loss(rows(1, 3), rows(1, 3))


class TestTransport:
    def test_rows_and_columns_balance(self):
        scores = F.normalize(rows(256, 32, grad=False)) @ F.normalize(rows(8, 32, seed=1, grad=False)).T
        q = L.sinkhorn(scores, iterations=50)
        torch.testing.assert_close(q.sum(1), torch.ones(256, dtype=torch.double), atol=1e-12, rtol=0)
        torch.testing.assert_close(q.sum(0), torch.full((8,), 32.0, dtype=torch.double), atol=1e-3, rtol=0)
        assert float((L.sinkhorn(scores, iterations=1).sum(0) - 32).abs().max()) > 0.1

    def test_equals_the_plain_iteration(self):
        scores = F.normalize(rows(10, 6, grad=False)) @ F.normalize(rows(4, 6, seed=1, grad=False)).T
        q = (scores / 0.05).exp().T
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / 4
            q = q / q.sum(0, keepdim=True) / 10
        torch.testing.assert_close(L.sinkhorn(scores), q.T * 10)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_sharp_and_equal_scores_stay_finite(self, dtype):
        ones = torch.ones(12, 5, dtype=dtype)
        torch.testing.assert_close(L.sinkhorn(ones, epsilon=0.01), torch.full((12, 5), 0.2), atol=1e-4, rtol=0)
        lonely = -torch.ones(12, 5, dtype=dtype)  # no row is near the last prototypes
        lonely[:, 0] = 1
        assert torch.isfinite(L.sinkhorn(lonely, epsilon=0.01, iterations=50)).all()

    def test_swav_is_the_swapped_prediction(self):
        z = [rows(9, 4, seed=seed) for seed in range(3)]
        c = rows(5, 4, seed=7)
        scores = [F.normalize(x) @ F.normalize(c).T for x in z]
        terms = [
            -(L.sinkhorn(scores[t].detach()) * (scores[s] / 0.1).log_softmax(1)).sum(1).mean()
            for t in range(2)
            for s in range(3)
            if s != t
        ]
        same(L.swav(z, c), torch.stack(terms).mean(), *z, c)

    def test_refusals(self):
        x, c = rows(4, 3), rows(2, 3)
        for call in (
            lambda: L.sinkhorn(x.detach(), epsilon=0.0),
            lambda: L.sinkhorn(x.detach(), iterations=0),
            lambda: L.swav([x], c),
            lambda: L.swav([x, x], c, assigned=3),
        ):
            with pytest.raises(ValueError, match="expected"):
                call()


class TestPrototypes:
    @pytest.mark.parametrize("tile", [None, 3])
    def test_equals_cross_entropy(self, tile):
        x, c = rows(9, 4), rows(5, 4, seed=1)
        labels = torch.tensor([0, 1, 2, 3, 4, -1, 0, -1, 2])
        logits = F.normalize(x) @ F.normalize(c).T / 0.1
        same(L.proto_nce(x, labels, c, tile=tile), F.cross_entropy(logits, labels, ignore_index=-1), x, c)
        t = torch.linspace(0.1, 0.5, 5, dtype=torch.double).requires_grad_()
        logits = F.normalize(x) @ F.normalize(c).T / t
        same(
            L.proto_nce(x, labels, c, temperature=t, tile=tile),
            F.cross_entropy(logits, labels, ignore_index=-1),
            *(x, c, t),
        )

    def test_no_labelled_row_gives_zero(self):
        x, c = rows(3, 4), rows(2, 4, seed=1)
        loss = L.proto_nce(x, torch.full((3,), -1), c)
        assert float(loss.detach()) == 0
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))

    @pytest.mark.unchecked
    def test_refusals(self):
        x, c, labels = rows(3, 4), rows(2, 4), torch.tensor([0, 1, 1])
        for call in (
            lambda: L.proto_nce(x, labels + 1, c),
            lambda: L.proto_nce(x, labels, rows(2, 3)),
            lambda: L.proto_nce(x, labels[:2], c),
            lambda: L.proto_nce(x, labels, c, temperature=torch.ones(3)),
            lambda: L.proto_nce(x, labels, c, temperature=0.0),
        ):
            with pytest.raises(ValueError, match=r"expected|prototype|temperature"):
                call()


class TestClustering:
    def test_student_t_and_target(self):
        z, c = rows(7, 3), rows(4, 3, seed=1)
        kernel = (1 + (z[:, None] - c[None]).square().sum(2) / 2).pow(-1.5)
        q = kernel / kernel.sum(1, keepdim=True)
        ours = L.student_t_assignment(z, c, alpha=2.0)
        same(ours.square().sum(), q.square().sum(), z, c)
        weight = q.square() / q.sum(0)
        p = (weight / weight.sum(1, keepdim=True)).detach()
        torch.testing.assert_close(L.dec_target(ours), p)
        same(L.dec(ours), (p * (p / q).log()).sum(1).mean(), z, c)
        assert float(L.dec(p, p)) == pytest.approx(0, abs=1e-12)

    def test_an_empty_cluster_is_no_nan(self):
        q = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
        loss = L.dec(q)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, q)[0]).all()
        assert torch.isfinite(L.cluster_contrast(q, q))

    def test_cluster_contrast(self):
        pa, pb = (rows(9, 4, seed=seed).softmax(1).detach().requires_grad_() for seed in (0, 1))
        s, index, partner = dense_views(pa.T, pb.T, 1.0)
        reference = F.cross_entropy(s.masked_fill(index[:, None] == index[None], LOW), partner)
        for p in (pa, pb):
            share = p.sum(0) / p.sum()
            reference = reference + math.log(4) + (share * share.log()).sum()
        same(L.cluster_contrast(pa, pb), reference, pa, pb)
        a, b = rows(9, 3), rows(9, 3, seed=1)
        both = L.contrastive_clustering(a, b, pa, pb)
        torch.testing.assert_close(both, L.nt_xent(a, b, temperature=0.5) + reference)


class TestDistillation:
    def test_logits(self):
        s, t = rows(6, 5), rows(6, 5, seed=1)
        reference = 9 * F.kl_div((s / 3).log_softmax(1), (t.detach() / 3).softmax(1), reduction="batchmean")
        same(L.distillation(s, t, temperature=3.0), reference, s)

    @pytest.mark.parametrize("anchored", [True, False])
    def test_relations(self, anchored):
        s, t = rows(7, 4), rows(7, 6, seed=1)
        anchors = (rows(9, 4, seed=2), rows(9, 6, seed=3)) if anchored else (s, t)
        temperature = torch.tensor(0.3, dtype=torch.double, requires_grad=True)

        def logits(x, keys, scale):
            z = F.normalize(x) @ F.normalize(keys).T / scale
            return z if anchored else z.masked_fill(torch.eye(7, dtype=torch.bool), LOW)

        log_q = logits(s, anchors[0], temperature).log_softmax(1)
        p = logits(t.detach(), anchors[1].detach(), 0.2).softmax(1)
        reference = (torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0.0)).sum(1).mean()
        given = {"student_anchors": anchors[0], "teacher_anchors": anchors[1]} if anchored else {}
        ours = L.relational_distillation(s, t, student_temperature=temperature, teacher_temperature=0.2, **given)
        inputs = (s, temperature, anchors[0]) if anchored else (s, temperature)
        same(ours, reference, *inputs)
        assert torch.autograd.grad(ours, t, allow_unused=True)[0] is None

    @pytest.mark.unchecked
    def test_refusals(self):
        s, t = rows(3, 4), rows(3, 6)
        for call in (
            lambda: L.relational_distillation(s, t[:2]),
            lambda: L.relational_distillation(s[:1], t[:1]),
            lambda: L.relational_distillation(s, t, student_anchors=s),
            lambda: L.relational_distillation(s, t, student_anchors=s, teacher_anchors=t[:2]),
            lambda: L.distillation(s, s, temperature=0.0),
        ):
            with pytest.raises(ValueError, match=r"expected|anchors|temperature"):
                call()


class TestDiscrepancy:
    def dense(self, x, y, sigma):
        def kernel(u, v):
            return (-(u[:, None] - v[None]).square().sum(2) / (2 * sigma**2)).exp()

        def others(k):
            return k[~torch.eye(len(k), dtype=torch.bool)].mean()

        return others(kernel(x, x)) + others(kernel(y, y)) - 2 * kernel(x, y).mean()

    def test_mmd_equals_the_dense_formula(self):
        x, y = rows(8, 3), (rows(6, 3, seed=1) + 1).detach().requires_grad_()
        distances = torch.pdist(torch.cat([x, y]).detach())
        median = float(distances.median())
        same(L.mmd(x, y, sigma=0.7), self.dense(x, y, 0.7), x, y)
        same(L.mmd(x, y), self.dense(x, y, median), x, y)
        same(L.mmd(x, y, sigma="mean"), self.dense(x, y, float(distances.mean())), x, y)
        multi = torch.stack([self.dense(x, y, median * f) for f in (0.5, 1, 2)]).mean()
        same(L.mmd(x, y, sigma="multi"), multi, x, y)

    def test_mmd_is_unbiased_and_survives_an_offset(self):
        generator = torch.Generator().manual_seed(0)
        values = torch.stack([L.mmd(*torch.randn(2, 20, 4, generator=generator), sigma=1.0) for _ in range(300)])
        assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(300)
        x, y = rows(50, 4, dtype=torch.float32, grad=False), rows(50, 4, seed=1, dtype=torch.float32, grad=False) + 1
        torch.testing.assert_close(L.mmd(x + 1000, y + 1000), L.mmd(x, y), atol=1e-3, rtol=1e-3)

    def test_mmd_of_equal_rows_is_finite(self):
        x = torch.zeros(4, 2, requires_grad=True)
        loss = L.mmd(x, x.detach())
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()

    def gram_cka(self, x, y, debiased):
        k, m = x @ x.T, y @ y.T
        n = len(k)
        if not debiased:
            h = torch.eye(n, dtype=x.dtype) - 1 / n

            def hsic(a, b):
                return ((h @ a @ h) * (h @ b @ h)).sum()

        else:
            off = 1 - torch.eye(n, dtype=x.dtype)

            def hsic(a, b):
                a, b = a * off, b * off
                product = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2))
                return product - 2 * (a @ b).sum() / (n - 2)

        return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()

    @pytest.mark.parametrize("debiased", [True, False])
    def test_cka_equals_the_gram_form(self, debiased):
        x, y = rows(9, 4), rows(9, 6, seed=1)
        same(L.cka(x, y, debiased=debiased), self.gram_cka(x, y, debiased), x, y)

    def test_debiased_cka_of_independent_rows_is_about_zero(self):
        generator = torch.Generator().manual_seed(0)
        pairs = [torch.randn(2, 12, 30, generator=generator, dtype=torch.double) for _ in range(200)]
        biased, debiased = (torch.stack([L.cka(*p, debiased=d) for p in pairs]).mean() for d in (False, True))
        assert float(biased) > 0.5
        assert abs(float(debiased)) < 0.05

    def test_a_constant_representation_gives_zero(self):
        x, y = torch.ones(5, 2, requires_grad=True), rows(5, 3, dtype=torch.float32)
        value = L.cka(x, y)
        assert float(value.detach()) == 0
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()

    @pytest.mark.unchecked
    def test_refusals(self):
        x = rows(3, 2)
        for call in (
            lambda: L.mmd(x, rows(3, 4)),
            lambda: L.mmd(x[:1], x),
            lambda: L.mmd(x, x, sigma=0.0),
            lambda: L.cka(x, x[:2]),
            lambda: L.cka(x[:1], x[:1]),
            lambda: L.cka(x, x, debiased=True),
        ):
            with pytest.raises(ValueError, match=r"expected|at least|positive"):
                call()


class TestHashingAndSparsity:
    def test_terms(self):
        h = rows(10, 4)
        same(L.quantization(h), (h.abs() - 1).abs().mean(), h)
        same(L.quantization(h, power=2), (h.abs() - 1).square().mean(), h)
        same(L.bit_balance(h), h.mean(0).square().mean(), h)
        moments = h.T @ h / 10
        same(L.bit_decorrelation(h), moments[~torch.eye(4, dtype=torch.bool)].square().mean(), h)
        same(L.flops(h), h.abs().mean(0).square().sum(), h)

    def test_perfect_codes_cost_nothing(self):
        codes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        for term in (L.quantization, L.bit_balance, L.bit_decorrelation):
            assert float(term(codes)) == 0

    def test_non_negative(self):
        x = rows(50)
        for kind in ("relu", "rep_relu", "softplus"):
            assert (L.non_negative(x, kind) >= 0).all()
        torch.testing.assert_close(L.non_negative(x, "rep_relu"), F.relu(x))
        (ours,) = torch.autograd.grad(L.non_negative(x, "rep_relu").sum(), x)
        (gelu,) = torch.autograd.grad(F.gelu(x).sum(), x)
        torch.testing.assert_close(ours, gelu)

    def test_dead_rows_of_a_non_negative_head_have_no_nan(self):
        x = torch.tensor([[-1.0, -2.0], [1.0, 2.0], [2.0, 1.0]], requires_grad=True)
        z = L.non_negative(x, "relu")
        loss = L.nt_xent(z, z.detach())
        assert torch.isfinite(loss)
        assert torch.equal(torch.autograd.grad(loss, x)[0][0], torch.zeros(2))

    @pytest.mark.unchecked
    def test_refusals(self):
        for call in (
            lambda: L.quantization(torch.ones(2, 2), power=3),
            lambda: L.bit_balance(torch.ones(0, 2)),
            lambda: L.bit_decorrelation(torch.ones(2, 1)),
            lambda: L.flops(torch.ones(0, 2)),
            lambda: L.non_negative(torch.ones(2), "elu"),
        ):
            with pytest.raises(ValueError, match=r"expected|at least"):
                call()
