"""GNAH: the prototype alignment, the anchors, the schedule, and what is learnt."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_retrieval.gnah.commands import new_learner
from cl_retrieval.gnah.learner import GNAHLearner, GNAHSettings
from cl_retrieval.gnah.model import GNAH, GNAHConfig
from cl_retrieval.gnah.objective import binary_anchors, cluster_means, global_weight, prototype_alignment
from cl_retrieval.hashing.codes import binary_codes
from cl_retrieval.hashing.learning import optimise, step_generator
from contrastive_core.errors import ContrastiveWarning, InputError


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def test_alignment_is_the_divergence_and_vanishes_where_it_should():
    f, c, h, a = unit(5, 8), unit(3, 8, seed=1), unit(5, 6, seed=2), binary_anchors(unit(3, 6, seed=3))
    p, q = (f @ c.T / 0.2).softmax(1), (h @ a.T / 0.5).softmax(1)
    found = prototype_alignment(f, h, c, a, temperature=0.5, teacher_temperature=0.2)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(1).mean())
    assert found > 0
    assert float(prototype_alignment(f, h, c[:1], a[:1])) == pytest.approx(0, abs=1e-12)
    same = prototype_alignment(h, h, a, a, temperature=0.5, teacher_temperature=0.5)
    assert float(same) == pytest.approx(0, abs=1e-12)


def test_alignment_moves_codes_alone():
    shapes = ((5, 8), (3, 8), (5, 6), (3, 6))
    f, c, h, a = (unit(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes))
    prototype_alignment(f, h, c, a).backward()
    assert h.grad.abs().sum() > 0
    assert f.grad is None
    assert c.grad is None
    assert a.grad is None


def test_anchors_are_binary_and_zero_counts_as_plus():
    anchors = binary_anchors(torch.tensor([[0.0, -2.0, 3.0, 0.1]]))
    assert anchors.tolist() == [[0.5, -0.5, 0.5, 0.5]]


def test_cluster_means_by_hand_empty_clusters_and_order():
    h = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, -1.0]])
    keep = torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 7.0]])
    labels = torch.tensor([0, 0, 2])
    found = cluster_means(h, labels, keep)
    assert found.tolist() == [[2.0, 1.0], [8.0, 8.0], [0.0, -1.0]]
    order = torch.tensor([2, 0, 1])
    assert cluster_means(h[order], labels[order], keep).tolist() == found.tolist()


def test_weight_starts_at_beta_and_only_falls():
    weights = [global_weight(t, 0.5, 0.01) for t in range(500)]
    assert weights[0] == 0.5
    assert all(a > b for a, b in itertools.pairwise(weights))
    assert weights[100] == pytest.approx(0.5 * math.exp(-1))


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(24, 12))
    views = [points + 0.3 * rng.normal(size=points.shape) + np.eye(12)[side] for side in (0, 1)]
    return tuple(torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)).float() for v in views)


CONFIG = GNAHConfig(bits=16, hidden=32)


def learner_of(pairs, epochs=20, config=CONFIG, **settings):
    return new_learner(*pairs, config, GNAHSettings(**settings), epochs=epochs, seed=0)


def test_the_step_is_the_weighted_sum_of_its_terms(pairs):
    learner = learner_of(pairs, beta=0.4, gamma=0.1, binarisation_weight=0.3)
    found = learner.step(*pairs, epoch=5, generator=step_generator(0, 5))
    w = 0.4 * math.exp(-0.5)
    expected = w * found.terms["alignment"] + (1 - w) * found.terms["contrast"] + 0.3 * found.terms["binarisation"]
    torch.testing.assert_close(found.loss, expected)
    assert float(found.terms["alignment_weight"]) == pytest.approx(w)


@pytest.mark.parametrize(
    ("variant", "terms"),
    [
        ("full", {"alignment", "contrast", "binarisation"}),
        ("no_p", {"contrast", "binarisation"}),
        ("no_c", {"alignment", "binarisation"}),
        ("no_b", {"alignment", "contrast"}),
        ("pairwise", {"contrast", "binarisation"}),
        ("relaxed_anchor", {"alignment", "contrast", "binarisation"}),
        ("projected_anchor", {"alignment", "contrast", "binarisation"}),
    ],
)
def test_variants_have_their_terms_and_train(pairs, variant, terms):
    learner = learner_of(pairs, epochs=2, variant=variant)
    found = learner.step(*pairs, epoch=0, generator=step_generator(0, 0))
    assert set(found.terms) - {"alignment_weight"} == terms
    before = [p.clone() for p in learner.model.parameters()]
    optimise(learner, *pairs, epochs=2, seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


def test_pairwise_takes_the_other_view_as_positive(pairs):
    from cl_retrieval.hashing.objective import symmetric_contrast

    learner = learner_of(pairs, variant="pairwise")
    hx, hy = (learner.model.relaxed(f, m) for f, m in zip(pairs, ("image", "text"), strict=True))
    found = learner.step(*pairs, epoch=0, generator=step_generator(0, 0))
    torch.testing.assert_close(found.terms["contrast"], symmetric_contrast(hx, hy, hy, hx, temperature=0.5))


def test_anchors_follow_the_codes_of_their_clusters(pairs):
    learner = learner_of(pairs, k=4)
    start = learner.state.clone()
    learner.begin_epoch(0)
    assert torch.equal(learner.state, start)  # random in the first epoch
    learner.begin_epoch(1)
    h = torch.cat([learner.model.relaxed(f, m) for f, m in zip(pairs, ("image", "text"), strict=True)]).detach()
    for j in range(4):
        mine = h[learner.labels == j]
        torch.testing.assert_close(learner.state[j], mine.mean(0) if len(mine) else start[j])
    projected = learner_of(pairs, k=4, variant="projected_anchor")
    projected.begin_epoch(1)
    both = sum(projected.model.hash(projected.prototypes, m) for m in ("image", "text"))
    torch.testing.assert_close(projected.state, both.detach())
    warm = learner_of(pairs, k=4, anchor_warmup=3)
    held = warm.state.clone()
    warm.begin_epoch(3)
    assert torch.equal(warm.state, held)
    warm.begin_epoch(4)
    assert not torch.equal(warm.state, held)


def test_hamming_assignment_uses_the_anchors(pairs):
    learner = learner_of(pairs, k=4, assign_space="hamming")
    h = torch.cat([learner.model.relaxed(f, m) for f, m in zip(pairs, ("image", "text"), strict=True)]).detach()
    labels = (h @ learner.anchors.T).argmax(1)
    expected = cluster_means(h, labels, learner.state)
    learner.begin_epoch(1)
    torch.testing.assert_close(learner.state, expected)


def test_collapsed_anchors_are_told(pairs):
    learner = learner_of(pairs, epochs=10)
    learner.state.fill_(1.0)
    learner.labels.fill_(0)
    for parameter in learner.model.parameters():
        parameter.data.abs_()
    learner.begin_epoch(1)  # before a fifth of the epochs nothing is said
    with pytest.warns(ContrastiveWarning, match="one sign pattern"):
        learner.begin_epoch(5)


def test_same_seed_same_codes_other_seed_others(pairs):
    def codes(seed):
        learner = new_learner(*pairs, CONFIG, GNAHSettings(), epochs=5, seed=seed)
        optimise(learner, *pairs, epochs=5, seed=seed)
        return binary_codes(learner.model, pairs[0].numpy(), "image")

    assert np.array_equal(codes(0), codes(0))
    assert not np.array_equal(codes(0), codes(1))


def test_training_brings_views_of_a_pair_together(pairs):
    def agreement(model):
        hx, hy = (model.relaxed(f, m) for f, m in zip(pairs, ("image", "text"), strict=True))
        cosines = hx @ hy.T
        others = cosines[~torch.eye(len(cosines), dtype=bool)].mean()
        return float(cosines.diagonal().mean() - others)

    learner = learner_of(pairs, epochs=150, lr=1e-3)
    before = agreement(learner.model)
    optimise(learner, *pairs, epochs=150, seed=0)
    assert agreement(learner.model) > before + 0.3


def test_centred_models_subtract_the_training_means(pairs):
    pairs = tuple(F.normalize(f + 2 * torch.eye(12)[side], dim=1) for side, f in enumerate(pairs))  # a wide gap
    learner = learner_of(pairs, config=dataclasses.replace(CONFIG, centre_modalities=True))
    model = learner.model
    torch.testing.assert_close(model.means, torch.stack([pairs[0].mean(0), pairs[1].mean(0)]))
    prepared = model.prepare(pairs[0], "image")
    torch.testing.assert_close(prepared, F.normalize(pairs[0] - pairs[0].mean(0), dim=1))
    assert learner.purity < learner_of(pairs).purity
    assert isinstance(learner, GNAHLearner)


def test_settings_out_of_range_are_refused():
    for name, value in {"temperature": 0.0, "beta": 1.5, "gamma": -1.0, "k_max": 1, "lr": 0.0}.items():
        with pytest.raises(InputError, match="out of range") as caught:
            GNAHSettings(**{name: value})
        assert caught.value.where == "--" + name.replace("_", "-")


def test_hash_functions_are_separate():
    torch.manual_seed(0)
    model = GNAH(12, CONFIG)
    f = unit(3, 12, dtype=torch.float32)
    assert not torch.equal(model.relaxed(f, "image"), model.relaxed(f, "text"))
    assert (model.dim, model.bits) == (12, 16)
