"""Moments of the distributions that the heads parameterise."""

import math

import pytest
import torch
from contrastive_core.nn.posterior import weibull_variance


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.0, 10.0, 19.0, 21.0])
def test_the_variance_of_a_weibull_distribution_is_that_of_its_gamma_functions(shape):
    expected = 9 * (math.gamma(1 + 2 / shape) - math.gamma(1 + 1 / shape) ** 2)
    assert float(weibull_variance(torch.tensor([shape]), torch.tensor([3.0]))) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("shape", [1e3, 1e4, 1e5, 1e6])
def test_it_keeps_its_digits_where_the_shape_is_large(shape):
    """To third order in 1/k: Var = (pi^2/6) x^2 - (2 zeta(3) + gamma pi^2 / 3) x^3 + ..."""
    k = torch.tensor([shape], requires_grad=True)
    variance = weibull_variance(k, torch.ones(1))
    x, gamma, zeta3 = 1 / shape, 0.5772156649015329, 1.2020569031595942
    expected = math.pi**2 / 6 * x**2 - (2 * zeta3 + gamma * math.pi**2 / 3) * x**3
    assert float(variance.detach()) == pytest.approx(expected, rel=2e-5)
    assert float(torch.autograd.grad(variance, k)[0]) == pytest.approx(-2 * expected / shape, rel=5e-3)
