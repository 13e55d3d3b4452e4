"""The mathematics of contrastive factor analysis: closed forms, limits, invariances."""

import math

import mpmath
import pytest
import torch
from cl_foundations.cfa.objective import ELBO, contrastive_likelihood, kl_weight, negative_elbo, optimal_normal_variance
from cl_foundations.cfa.posterior import (
    GammaPrior,
    NormalPosterior,
    PointPosterior,
    WeibullPosterior,
    kl_diag_normal,
    kl_weibull_gamma,
    normal_entropy,
    weibull_entropy,
    weibull_icdf,
)
from cl_foundations.cfa.system import monitor
from cl_foundations.cfa.uncertainty import uncertainty
from contrastive_core.losses import non_negative, nt_xent, spectral_contrastive, sup_con
from contrastive_core.nn import GaussianHead, WeibullHead
from scipy import integrate, stats


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(b, k, seed=0, dtype=torch.float32):
    g = draw(seed)
    return NormalPosterior(torch.randn(b, k, generator=g, dtype=dtype), torch.randn(b, k, generator=g, dtype=dtype) - 1)


def weibull(b, k, seed=0, dtype=torch.float32):
    g = draw(seed)
    shape, scale = (torch.rand(b, k, generator=g, dtype=dtype) for _ in range(2))
    return WeibullPosterior(1 + 4 * shape, 0.2 + scale)


MAKERS = pytest.mark.parametrize("make", [normal, weibull])


@pytest.mark.parametrize(
    ("k", "lam", "alpha", "beta", "value"),
    [(1, 1, 1, 1, 0.0), (2, 0.5, 1, 1, 0.5408), (3, 2, 0.1, 1, 3.5100), (0.7, 1.3, 2, 3, 1.9301)],
)
def test_kl_of_weibull_and_gamma(k, lam, alpha, beta, value):
    shape, scale = torch.tensor([float(k)]).double(), torch.tensor([float(lam)]).double()
    exact = float(kl_weibull_gamma(shape, scale, alpha, beta))
    assert exact == pytest.approx(value, abs=1e-4)
    q, p = stats.weibull_min(k, scale=lam), stats.gamma(alpha, scale=1 / beta)
    by_quadrature, _ = integrate.quad(lambda u: q.logpdf(q.ppf(u)) - p.logpdf(q.ppf(u)), 0, 1, limit=500)
    assert exact == pytest.approx(by_quadrature, abs=1e-5)
    q = torch.distributions.Weibull(scale, shape)
    torch.manual_seed(0)
    z = q.sample((400_000,))
    ratio = q.log_prob(z) - torch.distributions.Gamma(float(alpha), float(beta)).log_prob(z)
    assert float(ratio.mean()) == pytest.approx(exact, abs=4 * float(ratio.std()) / 400_000**0.5 + 1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0, 40.0])
def test_the_exponential_is_both_weibull_and_gamma(beta):
    assert float(kl_weibull_gamma(torch.ones(1), torch.tensor([1 / beta]), 1.0, beta)) == pytest.approx(0, abs=1e-5)


def test_kl_of_the_normal_agrees_with_torch():
    q = normal(5, 3)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.loc, (0.5 * q.log_var).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_diag_normal(q.loc, q.log_var), theirs, atol=1e-5, rtol=1e-5)


def test_entropies_agree_with_torch():
    q, w = normal(4, 3), weibull(4, 3)
    theirs = torch.distributions.Normal(q.loc, (0.5 * q.log_var).exp()).entropy().sum(1)
    torch.testing.assert_close(q.entropy(), theirs)
    torch.testing.assert_close(w.entropy(), torch.distributions.Weibull(w.scale, w.shape).entropy().sum(1))
    assert float(weibull_entropy(torch.tensor(2.0), torch.tensor(0.5))) == pytest.approx(-0.0977, abs=1e-4)


def test_moments_of_the_weibull():
    shape = 1 + 49 * torch.rand(6, 8, generator=draw())
    mean = 0.1 + 5 * torch.rand(6, 8, generator=draw(1))
    q = WeibullPosterior(shape, mean * torch.exp(-torch.lgamma(1 + 1 / shape)))
    torch.testing.assert_close(q.mean(), mean, atol=1e-5, rtol=1e-5)
    theirs = torch.distributions.Weibull(q.scale.double(), q.shape.double())
    torch.testing.assert_close(q.variance().double(), theirs.variance, rtol=2e-3, atol=1e-8)
    z = q.rsample(100_000, draw(2))
    assert (z > 0).all()
    # Quantiles beyond 1 ± 1e-6 are cut off; at shape 1 this moves the mean by 1e-6.
    error = (z.double().mean(0) - mean).abs()
    assert (error < 4 * q.variance().sqrt() / 100_000**0.5 + 1e-5).float().mean() > 0.97
    assert (error < 5 * q.variance().sqrt() / 100_000**0.5 + 1e-5).all()


def test_the_head_gives_the_mean_it_says():
    head = WeibullHead(16, 8)
    x = torch.randn(5, 16, generator=draw())
    torch.testing.assert_close(
        WeibullPosterior(*head(x)).mean(), torch.nn.functional.softplus(head.mean(x)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("shape", [1.0, 30.0, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_the_variance_of_a_narrow_weibull_does_not_cancel(shape):
    variance = WeibullPosterior(torch.full((1, 1), shape), torch.full((1, 1), 3.0)).variance()
    with mpmath.workdps(50):
        k = mpmath.mpf(shape)
        exact = float(9 * (mpmath.gamma(1 + 2 / k) - mpmath.gamma(1 + 1 / k) ** 2))
    assert float(variance) == pytest.approx(exact, rel=1e-4)


@MAKERS
def test_the_exact_spectral_loss_is_the_mean_of_sampled_ones(make):
    a, b = make(6, 3, 0, torch.float64), make(6, 3, 1, torch.float64)

    def plain(x, y):
        """The spectral contrastive loss of every draw, by its definition."""
        squares = torch.einsum("sik,sjk->sij", x, y).square()
        return squares[:, ~torch.eye(6, dtype=torch.bool)].mean(1) - 2 * (x * y).sum(2).mean(1)

    g = draw(3)
    values = plain(a.rsample(100_000, g), b.rsample(100_000, g))
    exact = contrastive_likelihood(a, b, likelihood="spectral_exact")
    assert float(exact) == pytest.approx(float(values.mean()), abs=4 * float(values.std()) / 100_000**0.5)
    g = draw(4)
    few = plain(a.rsample(50, g), b.rsample(50, g)).mean()
    sampled = contrastive_likelihood(a, b, likelihood="spectral_mc", samples=50, generator=draw(4))
    torch.testing.assert_close(sampled, few)


def test_without_variance_the_exact_spectral_loss_is_the_plain_one():
    z = [torch.randn(7, 4, generator=draw(seed)) for seed in range(2)]
    plain = spectral_contrastive(z[0], m2=z[1])
    assert torch.equal(contrastive_likelihood(*map(PointPosterior, z), likelihood="spectral_exact"), plain)
    assert torch.equal(contrastive_likelihood(*map(PointPosterior, z), likelihood="spectral_mc"), plain)
    still = [NormalPosterior(each, torch.full_like(each, -math.inf)) for each in z]
    torch.testing.assert_close(contrastive_likelihood(*still, likelihood="spectral_exact"), plain)


@pytest.mark.parametrize("non_negative_factors", [True, False])
def test_descent_on_two_cliques_ends_at_the_known_optimum(non_negative_factors):
    """Two cliques of two nodes, every pair of views once: only non-negative factors end on the axes.

    At ``z = a e_block`` the bound is ``-2 a² + p a⁴`` with the share p = 3/7 of pairs of one clique among the pairs of
    different rows; its minimum is -1/p.
    """
    first, second = torch.tensor([[i, j] for c in (0, 2) for i in (c, c + 1) for j in (c, c + 1)]).T

    def posterior(raw):
        if non_negative_factors:
            return WeibullPosterior(torch.full_like(raw, 1e5), torch.nn.functional.softplus(raw))
        return NormalPosterior(raw, torch.full_like(raw, -25.0))

    def rows(q, index):
        return type(q)(*(value[index] for value in vars(q).values()))

    off_axis = []
    for seed in range(4):
        raw = torch.randn(4, 2, generator=draw(seed), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([raw], max_iter=150, line_search_fn="strong_wolfe")

        def closure(raw=raw, optimizer=optimizer):
            optimizer.zero_grad()
            q = posterior(raw)
            loss = negative_elbo(rows(q, first), rows(q, second), likelihood="spectral_exact", eta=0.0).loss
            loss.backward()
            return loss

        optimizer.step(closure)
        assert float(closure().detach()) == pytest.approx(-7 / 3, abs=1e-3)
        off_axis.append(float(posterior(raw.detach()).mean().abs().min(1).values.max()))
    assert max(off_axis) < 0.05 if non_negative_factors else max(off_axis) > 0.2


def test_rotations_leave_cfa_and_permutations_leave_cnfa():
    a, b = normal(8, 4), normal(8, 4, 1)
    flat = torch.full_like(a.log_var, -1.5)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=draw(5)))[0]
    turned = [NormalPosterior(q.loc @ rotation, flat) for q in (a, b)]
    straight = [NormalPosterior(q.loc, flat) for q in (a, b)]
    settings = {"likelihood": "spectral_exact", "eta": 0.3}
    torch.testing.assert_close(negative_elbo(*turned, **settings).loss, negative_elbo(*straight, **settings).loss)

    v, w = weibull(8, 4), weibull(8, 4, 1)
    order = torch.tensor([2, 0, 3, 1])
    swapped = [WeibullPosterior(q.shape[:, order], q.scale[:, order]) for q in (v, w)]
    torch.testing.assert_close(negative_elbo(*swapped, **settings).loss, negative_elbo(v, w, **settings).loss)
    # A rotation that keeps the factors positive changes the KL of a Gamma prior that is no exponential.
    angle = 0.05
    mix = torch.eye(4)
    mix[:2, :2] = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    narrow = torch.full_like(v.scale, 50.0)
    before, after = (WeibullPosterior(narrow, scale) for scale in (v.scale, (v.scale @ mix).clamp_min(1e-3)))
    prior = GammaPrior(0.3, 1.0)
    assert float((before.kl(prior) - after.kl(prior)).abs().max()) > 1e-3


@pytest.mark.parametrize("shape", [1.0, 100.0])
@pytest.mark.parametrize("mean", [1e-6, 1e3])
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_gradients_are_finite_at_the_edges(shape, mean, u):
    k = torch.full((1, 1), shape, requires_grad=True)
    m = torch.full((1, 1), mean, requires_grad=True)
    scale = m * torch.exp(-torch.lgamma(1 + 1 / k))
    q = WeibullPosterior(k, scale)
    total = weibull_icdf(torch.full((1, 1), u), k, scale).sum() + q.kl().sum() + q.entropy().sum() + q.variance().sum()
    for gradient in torch.autograd.grad(total, (k, m)):
        assert torch.isfinite(gradient).all()


def test_gradients_of_every_piece():
    g = draw()
    k = (1 + torch.rand(2, 3, generator=g, dtype=torch.float64)).requires_grad_()
    s = (0.5 + torch.rand(2, 3, generator=g, dtype=torch.float64)).requires_grad_()
    u = torch.rand(2, 3, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda k, s: weibull_icdf(u, k, s), (k, s))
    assert torch.autograd.gradcheck(lambda k, s: kl_weibull_gamma(k, s, 0.3, 2.0), (k, s))
    assert torch.autograd.gradcheck(weibull_entropy, (k, s))
    assert torch.autograd.gradcheck(kl_diag_normal, (k, s))
    assert torch.autograd.gradcheck(normal_entropy, (k,))
    sampled = lambda k, s: NormalPosterior(k, s).rsample(2, draw(4))  # noqa: E731
    assert torch.autograd.gradcheck(sampled, (k, s))


def test_without_kl_and_variance_cfa_is_simclr():
    a, b = (torch.randn(6, 5, generator=draw(seed)) for seed in range(2))
    still = [NormalPosterior(z, torch.full_like(z, -math.inf)) for z in (a, b)]
    ours = negative_elbo(*still, eta=0.0, temperature=0.2)
    assert math.isinf(float(ours.kl))  # of a point; without weight it leaves the loss alone
    assert float(ours.loss) == float(nt_xent(a, b, temperature=0.2))
    points = negative_elbo(PointPosterior(a), PointPosterior(b), eta=0.7, temperature=0.2)
    assert float(points.loss) == float(nt_xent(a, b, temperature=0.2))


def test_without_kl_and_with_large_shapes_cnfa_is_ncl():
    a, b = (torch.randn(6, 5, generator=draw(seed)) for seed in range(2))
    means = [non_negative(z, "softplus") for z in (a, b)]
    shape = torch.full((6, 5), 1e7)
    sharp = [WeibullPosterior(shape, m * torch.exp(-torch.lgamma(1 + 1 / shape))) for m in means]
    ours = negative_elbo(*sharp, eta=0.0, temperature=0.2, generator=draw())
    assert float(ours.loss) == pytest.approx(float(nt_xent(*means, temperature=0.2)), abs=1e-4)


@MAKERS
def test_the_normalised_kl_does_not_depend_on_the_width(make):
    a, b = make(5, 4), make(5, 4, 1)

    def twice(q):
        first, second = (torch.cat([value, value], 1) for value in vars(q).values())
        return type(q)(first, second)

    torch.testing.assert_close(
        negative_elbo(a, b, eta=1.0).kl, negative_elbo(twice(a), twice(b), eta=1.0).kl, rtol=1e-5, atol=1e-6
    )
    summed = negative_elbo(twice(a), twice(b), likelihood="spectral_exact").kl
    torch.testing.assert_close(summed, 2 * negative_elbo(a, b, likelihood="spectral_exact").kl)


def test_entropy_grows_with_the_width_and_cv_ignores_the_scale():
    q = normal(3, 4)
    wider = NormalPosterior(q.loc, q.log_var + math.log(4))
    torch.testing.assert_close(wider.entropy() - q.entropy(), torch.full((3,), 4 * 0.5 * math.log(4)))
    w = weibull(3, 4)
    scores = [uncertainty(WeibullPosterior(w.shape, c * w.scale), generator=draw()) for c in (1, 10)]
    torch.testing.assert_close(scores[0]["cv"], scores[1]["cv"])
    assert (scores[1]["entropy"] > scores[0]["entropy"]).all()


def test_the_best_normal_variance_is_the_same_for_every_image():
    """Pitfall 6: the closed form is where the gradient of the exact spectral bound vanishes."""
    eta, m = 0.5, [torch.randn(40, 3, generator=draw(seed), dtype=torch.float64) for seed in range(2)]
    log_var = [torch.randn(40, 3, generator=draw(seed + 2), dtype=torch.float64).requires_grad_() for seed in range(2)]
    optimizer = torch.optim.LBFGS(log_var, max_iter=400, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        posteriors = [NormalPosterior(*pair) for pair in zip(m, log_var, strict=True)]
        loss = negative_elbo(*posteriors, likelihood="spectral_exact", eta=eta).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    found = log_var[0].detach().exp()
    expected = optimal_normal_variance(m[1], log_var[1].detach().exp(), eta)
    # The mean over other images leaves each image's own out, hence a spread of order 1/n.
    assert float((found.std(0) / found.mean(0)).max()) < 0.1
    torch.testing.assert_close(found.mean(0), expected, rtol=0.05, atol=0)


def test_classes_as_positives():
    a, b = (torch.randn(6, 5, generator=draw(seed)) for seed in range(2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    ours = contrastive_likelihood(PointPosterior(a), PointPosterior(b), labels=labels, temperature=0.2)
    assert float(ours) == float(sup_con(torch.cat([a, b]), torch.cat([labels, labels]), temperature=0.2))
    with pytest.raises(ValueError, match="infonce"):
        contrastive_likelihood(PointPosterior(a), PointPosterior(b), likelihood="spectral_exact", labels=labels)


@pytest.mark.parametrize("likelihood", ["infonce", "spectral_exact", "spectral_mc"])
@MAKERS
def test_one_image_is_refused_and_equal_ones_are_not(make, likelihood):
    with pytest.raises(ValueError, match="at least two"):
        negative_elbo(make(1, 3), make(1, 3), likelihood=likelihood)
    same = PointPosterior(torch.ones(4, 3))
    value = negative_elbo(same, same, likelihood=likelihood).loss
    assert float(value) == pytest.approx(math.log(7) if likelihood == "infonce" else -2 * 3 + 9, abs=1e-5)
    zero = PointPosterior(torch.zeros(4, 3))
    assert math.isfinite(float(negative_elbo(zero, zero, likelihood=likelihood).loss))


@pytest.mark.unchecked
def test_refusals():
    q = normal(4, 3)
    with pytest.raises(ValueError, match="expected infonce"):
        negative_elbo(q, q, likelihood="nce")
    with pytest.raises(ValueError, match="positive"):
        GammaPrior(0.0, 1.0)
    with pytest.raises(ValueError, match="no entropy"):
        PointPosterior(q.loc).entropy()


def test_several_draws_are_averaged():
    a, b = normal(5, 4), normal(5, 4, 1)
    many = contrastive_likelihood(a, b, samples=64, generator=draw())
    single = [float(contrastive_likelihood(a, b, generator=draw(seed))) for seed in range(20)]
    assert min(single) < float(many) < max(single)


def test_views_are_split_and_the_kl_warms_up():
    q = normal(6, 2)
    first, second = q.halves()
    assert torch.equal(torch.cat([first.loc, second.loc]), q.loc)
    assert torch.equal(torch.cat([first.log_var, second.log_var]), q.log_var)
    w = weibull(6, 2)
    assert torch.equal(w.halves()[1].scale, w.scale[3:])
    assert [kl_weight(step, 10, 2.0, 0.5) for step in (0, 1, 5, 9)] == [0.0, 0.4, 2.0, 2.0]
    assert kl_weight(0, 10, 2.0, 0.0) == 2.0


def test_the_monitor_sees_dead_factors():
    loc = torch.randn(8, 4, generator=draw())
    loc[:, 0] = 0
    elbo = ELBO(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(20.0))
    seen = monitor(NormalPosterior(loc, torch.zeros(8, 4)), elbo)
    assert (seen["likelihood"], seen["kl"]) == (1, 20)
    assert seen["dead"] == 1
    assert seen["active"] == 3
    assert float(seen["entropy"]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e))
    shapes = torch.tensor([[100.0, 5.0], [100.0, 0.5]])
    assert monitor(WeibullPosterior(shapes, torch.ones(2, 2)), elbo, shape_min=0.5)["shape_at_bound"] == 0.75


def test_heads_stay_in_full_precision_under_autocast():
    x = torch.randn(3, 8, generator=draw())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert NormalPosterior(*GaussianHead(8, 4)(x)).kl().dtype == torch.float32
        assert WeibullPosterior(*WeibullHead(8, 4)(x)).kl().dtype == torch.float32
