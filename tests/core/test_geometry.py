"""Geometry of embeddings: closed forms and brute force over pairs."""

import math

import numpy as np
import pytest
import torch
from contrastive_core.evaluation import (
    PairGeometry,
    Spectrum,
    alignment,
    class_consistency,
    effective_rank,
    orthogonality,
    purity_at,
    sparsity,
    uniformity,
    vendi_score,
)


def rand(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_alignment_by_definition():
    x, y = rand(9, 4), rand(9, 4, seed=1)
    unit = [each / each.norm(dim=1, keepdim=True) for each in (x, y)]
    for alpha in (1, 2):
        assert alignment(3 * x, y, alpha=alpha) == pytest.approx(
            float((unit[0] - unit[1]).norm(dim=1).pow(alpha).mean())
        )
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-20)
    assert alignment(x, -x) == pytest.approx(4)
    with pytest.raises(ValueError, match="pairs"):
        alignment(x[:0], y[:0])


@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("t", [1, 2.5])
def test_uniformity_by_definition_in_any_tiles(t, tile):
    x = rand(13, 4)
    distances = torch.pdist(x / x.norm(dim=1, keepdim=True))
    assert uniformity(x, t=t, tile=tile) == pytest.approx(float(torch.exp(-t * distances**2).mean().log()))


def test_uniformity_of_antipodes_and_of_one_point():
    assert uniformity(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two rows"):
        uniformity(torch.ones(1, 3))


def test_pairs_in_batches_equal_all_at_once():
    x, y = rand(20, 4), rand(20, 4, seed=1)
    geometry = PairGeometry(alpha=1, t=3)
    with pytest.raises(ValueError, match="no pairs"):
        geometry.compute()
    for part in torch.arange(20).split(7):
        geometry.update(x[part], y[part])
    got = geometry.compute()
    assert got["alignment"] == pytest.approx(alignment(x, y, alpha=1))
    assert got["uniformity"] == pytest.approx((uniformity(x, t=3) + uniformity(y, t=3)) / 2)


@pytest.mark.parametrize("center", [False, True])
def test_spectrum_in_batches_equals_the_svd(center):
    x = rand(50, 6) @ torch.diag(torch.tensor([5.0, 2, 1, 0.5, 0.1, 1e-3]).double()) + 3
    spectrum = Spectrum(center=center)
    for part in x.split(9):
        spectrum.update(part)
    want = torch.linalg.svdvals(x - x.mean(0) if center else x)
    torch.testing.assert_close(spectrum.singular_values(), want, atol=1e-5, rtol=1e-6)
    shares = want / want.sum() + 1e-7
    assert effective_rank(x, center=center) == pytest.approx(math.exp(float(-(shares * shares.log()).sum())), rel=1e-5)


def test_effective_rank_counts_equal_directions():
    basis = torch.linalg.qr(rand(8, 8))[0][:3]
    assert effective_rank(rand(1, 3).sign() * torch.eye(3).double() @ basis, eps=0) == pytest.approx(3)
    assert effective_rank(rand(30, 1) @ basis[:1], eps=0) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="no rows"):
        Spectrum().singular_values()


def test_vendi_counts_different_items():
    assert vendi_score(torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(6).repeat(3, 1)) == pytest.approx(6)
    assert vendi_score(torch.ones(6, 2)) == pytest.approx(1)
    x = rand(5, 9)
    unit = x / x.norm(dim=1, keepdim=True)
    values = np.linalg.eigvalsh((unit @ unit.T / 5).numpy())
    assert vendi_score(x) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values)))
    assert vendi_score(x.repeat(4, 1)) == pytest.approx(vendi_score(x))  # more rows than columns


def test_factors_by_hand():
    z = torch.tensor([[1.0, 0, 0], [2.0, 1e-9, 0], [0, 3.0, 0], [1.0, 1.0, 0]])
    labels = torch.tensor([7, 7, 3, 3])
    # Factor 0 is active in rows 0, 1, 3 (classes 7, 7, 3), factor 1 in rows 2, 3; factor 2 never.
    assert class_consistency(z, labels) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(class_consistency(torch.zeros(4, 2), labels))
    assert purity_at(z[:, :2], labels, n=2) == pytest.approx((0.5 + 1) / 2)
    assert sparsity(z) == pytest.approx(7 / 12)
    assert sparsity(torch.tensor([[0.005, 0.0]]), normalize=True) == 0.5
    with pytest.raises(ValueError, match="n lies"):
        purity_at(z, labels, n=5)


def test_orthogonality():
    assert orthogonality(torch.eye(4, 3)) == 0
    assert orthogonality(torch.ones(4, 3)) == pytest.approx(1)
    x = rand(9, 3)
    cosine = [abs(float(torch.cosine_similarity(x[:, i], x[:, j], dim=0))) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert orthogonality(x) == pytest.approx(np.mean(cosine))
    assert orthogonality(torch.zeros(4, 3)) == 0
    with pytest.raises(ValueError, match="two columns"):
        orthogonality(x[:, :1])
