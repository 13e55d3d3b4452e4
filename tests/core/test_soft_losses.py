"""InfoNCE with soft targets against its definition and its limits."""

import math

import pytest
import torch
from contrastive_core.losses import clip_loss, info_nce, rbf_targets, soft_info_nce


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_hot_targets_are_info_nce():
    z, q = rows(7, 5, 0), rows(7, 5, 1)
    expected = clip_loss(z, q, logit_scale=1 / 0.2)
    for targets in (None, torch.eye(7, dtype=torch.float64)):
        torch.testing.assert_close(soft_info_nce(z, q, targets, temperature=0.2), expected)
    one_way = soft_info_nce(z, q, temperature=0.2, symmetric=False)
    torch.testing.assert_close(one_way, info_nce(z, q, temperature=0.2))


def test_the_definition_written_out():
    z, q, weights = rows(4, 3, 2), rows(4, 3, 3), rows(4, 4, 4).abs()
    unit = [x / x.norm(dim=1, keepdim=True) for x in (z, q)]
    logits = unit[0] @ unit[1].T / 0.5
    expected = 0.0
    for matrix, w in ((logits, weights), (logits.T, weights.T)):
        for i in range(4):
            for j in range(4):
                p = w[i, j] / w[i].sum()
                expected -= p * (matrix[i, j] - torch.logsumexp(matrix[i], 0)) / 4 / 2
    torch.testing.assert_close(soft_info_nce(z, q, weights, temperature=0.5), expected)


def test_limits():
    assert float(soft_info_nce(rows(1, 3, 0), rows(1, 3, 1))) == 0
    eye = torch.eye(6)
    assert float(soft_info_nce(eye, eye, temperature=0.01)) < 1e-3
    same = torch.ones(6, 3)
    assert float(soft_info_nce(same, eye[:, :3] + 1, temperature=0.1, symmetric=False)) == pytest.approx(
        float(
            -torch.log_softmax(
                (torch.nn.functional.normalize(same, dim=1) @ torch.nn.functional.normalize(eye[:, :3] + 1, dim=1).T)
                / 0.1,
                1,
            )
            .diagonal()
            .mean()
        ),
        rel=1e-5,
    )
    assert float(soft_info_nce(same, same)) == pytest.approx(math.log(6), rel=1e-6)


def test_gradients_and_what_has_none():
    z, q = rows(4, 3, 5).requires_grad_(), rows(4, 3, 6).requires_grad_()
    weights = rows(4, 4, 7).abs()
    assert torch.autograd.gradcheck(lambda a, b: soft_info_nce(a, b, weights, temperature=0.3), (z, q))
    # Uniform targets: moving all logits by one constant moves the loss by nothing. Here a common factor of zero rows.
    logits = rows(4, 4, 8).requires_grad_()
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = -((logits + shift).log_softmax(1) / 4).sum(1).mean()
    assert abs(float(torch.autograd.grad(loss, shift)[0])) < 1e-12
    meta = rows(4, 2, 9).requires_grad_()
    assert not rbf_targets(meta).requires_grad


def test_targets_from_known_values():
    meta = rows(6, 3, 10)
    found = rbf_targets(meta, sigma=0.7)
    distance = (meta[:, None] - meta[None]).square().sum(2)
    torch.testing.assert_close(found, (-distance / (2 * 3 * 0.7**2)).softmax(1))
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(rbf_targets(meta, meta[:4], sigma=0.7), (-distance[:, :4] / (6 * 0.49)).softmax(1))
    torch.testing.assert_close(rbf_targets(meta, sigma=1e-3), torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(rbf_targets(meta, sigma=1e6), torch.full((6, 6), 1 / 6, dtype=torch.float64))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("shapes", "targets", "settings"),
    [
        (((3, 2), (4, 2)), None, {}),
        (((3, 2), (3, 5)), None, {}),
        (((0, 2), (0, 2)), None, {}),
        (((3, 2), (3, 2)), torch.ones(2, 3), {}),
        (((3, 2), (3, 2)), torch.zeros(3, 3), {}),
        (((3, 2), (3, 2)), -torch.eye(3), {}),
        (((3, 2), (3, 2)), None, {"temperature": 0.0}),
    ],
)
def test_refusals(shapes, targets, settings):
    with pytest.raises(ValueError, match=r"expected|rows|targets|positive"):
        soft_info_nce(torch.randn(shapes[0]), torch.randn(shapes[1]), targets, **settings)


def test_a_width_is_positive():
    with pytest.raises(ValueError, match="positive"):
        rbf_targets(torch.zeros(2, 2), sigma=0.0)
