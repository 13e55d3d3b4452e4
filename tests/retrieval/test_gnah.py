"""GNAH: the prototype alignment, the anchors, the schedule, and what is learnt."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_retrieval.gnah import (
    GNAH,
    GNAHConfig,
    GNAHEncoder,
    ObjectiveSettings,
    Settings,
    binary_anchors,
    cluster_means,
    global_weight,
    prototype_alignment,
    train_gnah,
)
from cl_retrieval.gnah.training import new_system
from cl_retrieval.hashing.objective import symmetric_contrast
from cl_retrieval.hashing.system import AdamSettings, weighted_sum
from cl_retrieval.pairs import PairFeatures
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.training import TrainSettings


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
    return PairFeatures.from_arrays(*(points + 0.3 * rng.normal(size=points.shape) + np.eye(12)[s] for s in (0, 1)))


CONFIG = GNAHConfig(bits=16, hidden=32)


def settings_of(epochs=20, config=CONFIG, lr=1e-4, seed=0, **objective):
    training = TrainSettings(epochs=epochs, seed=seed, progress=False, accelerator="cpu")
    return Settings(config, ObjectiveSettings(**objective), AdamSettings(lr), training=training)


def system_of(pairs, **settings):
    return new_system(pairs, settings_of(**settings))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def sides(pairs):
    return torch.from_numpy(pairs.image), torch.from_numpy(pairs.text)


def codes_of(system):
    return system.model.relaxed(system.fx, "image"), system.model.relaxed(system.fy, "text")


def test_the_step_is_the_weighted_sum_of_its_terms(pairs):
    system = system_of(pairs, beta=0.4, gamma=0.1, binarisation_weight=0.3)
    terms = system.terms(*sides(pairs), epoch=5, generator=draws())
    w = 0.4 * math.exp(-0.5)
    assert {name: term.weight for name, term in terms.items()} == pytest.approx(
        {"alignment": w, "contrast": 1 - w, "binarisation": 0.3}
    )
    expected = w * terms["alignment"].value + (1 - w) * terms["contrast"].value + 0.3 * terms["binarisation"].value
    torch.testing.assert_close(weighted_sum(terms), expected)


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
def test_variants_have_their_terms_and_reach_all_weights(pairs, variant, terms):
    system = system_of(pairs, variant=variant)
    system.begin_epoch(1, 0.0)
    given = system.terms(*sides(pairs), epoch=1, generator=draws())
    assert set(given) == terms
    weighted_sum(given).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.model.parameters())


def test_pairwise_takes_the_other_view_as_positive(pairs):
    system = system_of(pairs, variant="pairwise")
    hx, hy = codes_of(system)
    terms = system.terms(*sides(pairs), epoch=0, generator=draws())
    torch.testing.assert_close(terms["contrast"].value, symmetric_contrast(hx, hy, hy, hx, temperature=0.5))


def test_anchors_follow_the_codes_of_their_clusters(pairs):
    system = system_of(pairs, k=4)
    start = system.state.clone()
    system.begin_epoch(0, 0.0)
    assert torch.equal(system.state, start)  # random in the first epoch
    system.begin_epoch(1, 0.0)
    h = torch.cat(codes_of(system)).detach()
    for j in range(4):
        members = h[system.labels == j]
        torch.testing.assert_close(system.state[j], members.mean(0) if len(members) else start[j])
    projected = system_of(pairs, k=4, variant="projected_anchor")
    projected.begin_epoch(1, 0.0)
    both = sum(projected.model.hash(projected.prototypes, m) for m in ("image", "text"))
    torch.testing.assert_close(projected.state, both.detach())


@pytest.mark.parametrize(("warmup", "kept"), [(0, 1), (1, 1), (3, 3)])
def test_warm_up_keeps_random_anchors_for_so_many_epochs(pairs, warmup, kept):
    system = system_of(pairs, k=4, anchor_warmup=warmup)
    start = system.state.clone()
    for epoch in range(kept):
        system.begin_epoch(epoch, 0.0)
        assert torch.equal(system.state, start)
    system.begin_epoch(kept, 0.0)
    assert not torch.equal(system.state, start)


def test_hamming_assignment_uses_the_anchors(pairs):
    system = system_of(pairs, k=4, assign_space="hamming")
    h = torch.cat(codes_of(system)).detach()
    expected = cluster_means(h, (h @ system.anchors.T).argmax(1), system.state)
    system.begin_epoch(1, 0.0)
    torch.testing.assert_close(system.state, expected)


def test_collapsed_anchors_are_told(pairs):
    system = system_of(pairs)
    system.state.fill_(1.0)
    system.labels.fill_(0)
    for parameter in system.model.parameters():
        parameter.data.abs_()
    system.begin_epoch(1, 0.1)  # before a fifth of the run nothing is said
    with pytest.warns(ContrastiveWarning, match="one sign pattern"):
        system.begin_epoch(5, 0.25)


def test_an_encoder_learns_repeats_saves_and_loads(pairs, tmp_path):
    """Views of a pair get codes that agree more than those of other pairs, the same ones from the same seed."""

    def gap(encoder):
        hx, hy = (encoder.model.relaxed(f, m).detach() for f, m in zip(sides(pairs), ("image", "text"), strict=True))
        cosines = hx @ hy.T
        return float(cosines.diagonal().mean() - cosines[~torch.eye(24, dtype=bool)].mean())

    before = torch.random.get_rng_state()
    trained, again = (train_gnah(pairs, settings_of(epochs=30, lr=1e-2)) for _ in range(2))
    other = train_gnah(pairs, settings_of(epochs=1, lr=1e-2, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert gap(trained) > gap(other) + 0.3
    codes = trained.encode(pairs.image, "image")
    assert np.array_equal(codes, again.encode(pairs.image, "image"))
    assert trained.identity == again.identity != other.identity
    trained.save(tmp_path)
    loaded = GNAHEncoder.load(tmp_path)
    assert np.array_equal(codes, loaded.encode(pairs.image, "image"))
    assert loaded.identity == trained.identity
    with pytest.raises(InputError, match="unit length"):
        loaded.encode(2 * pairs.image, "image")


def test_centred_models_subtract_the_training_means(pairs):
    rows = (f + 2 * np.eye(12)[side] for side, f in enumerate((pairs.image, pairs.text)))  # a wide gap
    pairs = PairFeatures.from_arrays(*rows)
    system = system_of(pairs, config=dataclasses.replace(CONFIG, centre_modalities=True))
    fx, fy = sides(pairs)
    torch.testing.assert_close(system.model.means, torch.stack([fx.mean(0), fy.mean(0)]))
    torch.testing.assert_close(system.model.prepare(fx, "image"), F.normalize(fx - fx.mean(0), dim=1))
    assert system.purity < system_of(pairs).purity


def test_settings_out_of_range_are_refused():
    for name, value in {"temperature": 0.0, "beta": math.nan, "gamma": -1.0, "k_max": 1, "k": 0}.items():
        with pytest.raises(InputError, match="out of range") as caught:
            ObjectiveSettings(**{name: value})
        assert caught.value.where == "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=r"--optim\.lr"):
        AdamSettings(lr=math.nan)


def test_hash_functions_are_separate():
    torch.manual_seed(0)
    model = GNAH(12, CONFIG)
    f = unit(3, 12, dtype=torch.float32)
    assert not torch.equal(model.relaxed(f, "image"), model.relaxed(f, "text"))
    assert (model.dim, model.bits) == (12, 16)
