"""What GNAH and APKH share: neighbourhoods, contrast, binarisation, prototypes, splits, evaluation, baselines."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_retrieval.hashing.baselines import DJSRHSettings, cca_itq, itq, random_projection, train_djsrh
from cl_retrieval.hashing.codes import bit_correlation, bit_statistics, unpack_codes
from cl_retrieval.hashing.evaluation import Conventions, direction_scores, evaluate_split, pair_recall
from cl_retrieval.hashing.heads import HashFunction, sign_codes
from cl_retrieval.hashing.objective import (
    binarisation,
    contrast,
    pair_gaussian,
    pair_neighbourhood,
    symmetric_contrast,
)
from cl_retrieval.hashing.prototypes import elbow, kmeans_prototypes, modality_purity
from cl_retrieval.hashing.split import Split, divide_classes, draw_split
from cl_retrieval.hashing.system import HashingSystem, Term
from cl_retrieval.hashing.training import fit_pairs, pair_batches
from cl_retrieval.pairs.features import PairFeatures
from contrastive_core.errors import InputError
from contrastive_core.evaluation import hamming_distances, pack_codes
from contrastive_core.training import TrainSettings
from contrastive_core.training.batches import order_of


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@pytest.fixture(scope="module")
def pairs():
    """Sixty pairs of three classes, two views of one point each, with a gap between the modalities."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    points = np.eye(3)[labels] @ rng.normal(size=(3, 16)) + 0.3 * rng.normal(size=(60, 16))
    views = [points + 0.3 * rng.normal(size=points.shape) + 1.0 * np.eye(16)[side] for side in (0, 1)]
    image, text = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in views)
    onehot = np.eye(3, dtype=np.uint8)[labels]
    return PairFeatures(tuple(f"p{i:02d}" for i in range(60)), image, text, onehot, ("a", "b", "c"), fingerprint="test")


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16, 20, 32, 64])
def test_packing_keeps_signs_and_hamming_is_half_the_missing_product(bits):
    signs = sign_codes(torch.randn(12, bits, generator=torch.Generator().manual_seed(bits)))
    packed = pack_codes(signs)
    assert packed.shape == (12, -(-bits // 8))
    assert np.array_equal(unpack_codes(packed, bits), signs.numpy())
    assert np.array_equal(hamming_distances(packed, packed), ((bits - signs @ signs.T) / 2).numpy())


def test_zero_is_plus_one_and_nan_is_refused():
    assert sign_codes(torch.tensor([[0.0, -0.0, -1e-9]])).tolist() == [[1.0, 1.0, -1.0]]
    with pytest.raises(ValueError, match="finite"):
        sign_codes(torch.tensor([[float("nan")]]))


def test_hash_functions_give_unit_rows_and_a_linear_one_has_one_layer():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for hidden in (0, 16):
        head = HashFunction(8, 12, hidden=hidden)
        torch.testing.assert_close(head(x).norm(dim=1), torch.ones(5))
        assert head.activations(x).abs().max() < 1
        assert sum(isinstance(m, torch.nn.Linear) for m in head.modules()) == 1 + (hidden > 0)
        assert all(float(m.bias.abs().max()) == 0 for m in head.modules() if isinstance(m, torch.nn.Linear))
    with pytest.raises(InputError, match="cannot be built"):
        HashFunction(8, 0)


def test_statistics_of_bits():
    codes = np.array([[1, 1, 1], [1, -1, -1], [1, 1, 1], [1, -1, -1]], np.float32)
    found = bit_statistics(codes)
    assert found["balance"] == pytest.approx(1 / 3)
    assert found["entropy"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["distinct"] == 0.5
    assert bit_correlation(codes)[1, 2] == pytest.approx(1)
    assert found["correlation"] == pytest.approx(1 / 3)  # a bit that never changes correlates with none


# --- binarisation -----------------------------------------------------------------------------------------------------


def test_binarisation_is_its_closed_form_and_zero_only_at_a_binary_code():
    h = unit(7, 16)
    l1 = h.abs().sum(1)
    torch.testing.assert_close(binarisation(h), (2 - 2 * l1 / 4).mean())
    torch.testing.assert_close(binarisation(h, reference="pm1"), (1 + 16 - 2 * l1).mean())
    assert binarisation(sign_codes(h) / 4) == 0
    nearly = F.normalize(sign_codes(h) / 4 + 1e-3 * unit(7, 16, seed=1), dim=1)
    assert binarisation(nearly) > 0


# --- neighbourhoods ---------------------------------------------------------------------------------------------------


def test_spread_of_a_pair_is_half_of_one_minus_the_cosine():
    fx, fy = unit(9, 32), unit(9, 32, seed=1)
    mu, sigma = pair_gaussian(fx, fy)
    torch.testing.assert_close(sigma.square(), (1 - (fx * fy).sum(1)) / 2)
    torch.testing.assert_close(mu, F.normalize(fx + fy, dim=1))


def test_identical_views_have_no_neighbourhood():
    f = unit(4, 16)
    mu, sigma = pair_gaussian(f, f)
    assert sigma.tolist() == [0.0] * 4
    sampled = pair_neighbourhood(mu, sigma, samples=3)
    torch.testing.assert_close(sampled, f.expand(3, -1, -1))


@pytest.mark.parametrize("dim", [8, 512])
def test_total_noise_has_the_variance_of_the_pair(dim):
    # Undone by hand: before the rows are brought to unit length, a displacement has length sigma on average.
    sigma, draws = 0.6, 10_000
    generator = torch.Generator().manual_seed(1)
    mu = torch.zeros(draws, dim).index_fill_(1, torch.tensor([0]), 1.0)
    sampled = pair_neighbourhood(mu, torch.full((draws,), sigma), generator=generator)[0]
    noise = torch.randn((1, draws, dim), generator=torch.Generator().manual_seed(1))[0] * sigma / math.sqrt(dim)
    torch.testing.assert_close(sampled, F.normalize(mu + noise, dim=1))
    assert noise.square().sum(1).mean() == pytest.approx(sigma**2, rel=0.03)


def test_printed_noise_forgets_the_pair_in_many_dimensions():
    mu = unit(2000, 512, dtype=torch.float32)
    sigma = torch.full((2000,), 0.59)
    near = (pair_neighbourhood(mu, sigma)[0] * mu).sum(1).mean()
    far = (pair_neighbourhood(mu, sigma, scale="per_coordinate")[0] * mu).sum(1).mean()
    assert near == pytest.approx(1 / math.sqrt(1 + 0.59**2), abs=0.01)
    assert far == pytest.approx(1 / math.sqrt(1 + 0.59**2 * 512), abs=0.01)


# --- contrast ---------------------------------------------------------------------------------------------------------


def dense_contrast(anchor, positive, other, temperature, weights):
    total = 0.0
    for i in range(len(anchor)):
        p = math.exp(float(anchor[i] @ positive[i]) / temperature)
        rest = sum(
            float(weights[i, j]) * math.exp(float(anchor[i] @ key[j]) / temperature)
            for j in range(len(anchor))
            for key in (anchor, other)
            if j != i
        )
        total -= math.log(p / (p + rest))
    return total / len(anchor)


@pytest.mark.parametrize("weighted", [False, True])
def test_contrast_is_the_printed_sum(weighted):
    hx, hy, p = unit(5, 8), unit(5, 8, seed=1), unit(5, 8, seed=2)
    w = torch.rand(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w[0, 1] = 0.0  # a weight of zero takes the negative out
    weights = w if weighted else torch.ones(5, 5)
    found = contrast(hx, p, hy, temperature=0.3, negative_weights=w if weighted else None)
    assert float(found) == pytest.approx(dense_contrast(hx, p, hy, 0.3, weights))


def test_contrast_of_equal_codes_counts_the_terms():
    h = unit(1, 8).expand(6, 8)
    assert float(contrast(h, h, h)) == pytest.approx(math.log(2 * 6 - 1))
    assert float(contrast(h[:1], h[:1], h[:1])) == 0.0


def test_own_code_of_the_other_modality_is_no_term():
    hx, hy, p = unit(4, 8), unit(4, 8, seed=1).requires_grad_(), unit(4, 8, seed=2)
    one = contrast(hx, p, hy) * 4
    # Of the anchor i alone: its loss does not move with its own h_i^y, but with the others'.
    for i in range(4):
        both = torch.cat([hx[i] @ hx.T, hx[i] @ hy.T]) / 0.5
        keep = torch.tensor([j % 4 != i for j in range(8)])
        alone = F.softplus(torch.logsumexp(both[keep], 0) - hx[i] @ p[i] / 0.5)
        (gradient,) = torch.autograd.grad(alone, hy, retain_graph=True)
        assert gradient[i].abs().max() == 0
        assert gradient.abs().sum() > 0
        one = one - alone
    assert float(one) == pytest.approx(0, abs=1e-9)


def test_gradients_reach_all_four_codes_and_are_right():
    parts = [unit(3, 4, seed=s).requires_grad_() for s in range(4)]
    assert torch.autograd.gradcheck(lambda *h: symmetric_contrast(*h, temperature=0.5), parts)
    loss = symmetric_contrast(*parts)
    swapped = symmetric_contrast(parts[1], parts[0], parts[3], parts[2])
    torch.testing.assert_close(loss, swapped)
    loss.backward()
    assert all(float(each.grad.abs().sum()) > 0 for each in parts)


def test_more_samples_less_variance():
    fx, fy = unit(6, 16), unit(6, 16, seed=1)
    mu, sigma = pair_gaussian(fx, fy)
    generator = torch.Generator().manual_seed(0)

    def spread(samples):
        losses = [
            float(contrast(fx, pair_neighbourhood(mu, sigma, samples=samples, generator=generator), fy))
            for _ in range(400)
        ]
        return np.var(losses)

    assert spread(1) / spread(8) == pytest.approx(8, rel=0.35)


# --- prototypes -------------------------------------------------------------------------------------------------------


def test_elbow_finds_the_number_of_clusters():
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:5]
    rows = np.repeat(centres, 12, axis=0) + 0.05 * rng.normal(size=(60, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = kmeans_prototypes(rows, k_max=12, seed=0)
    assert len(found.centres) == 5
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, rtol=1e-6)
    assert len(set(found.assign(rows).tolist())) == 5
    assert elbow(np.array([2, 3]), np.array([4.0, 1.0])) == 2  # too short for an elbow
    assert elbow(np.array([2, 3, 4]), np.array([0.0, 0.0, 0.0])) == 2


def test_prototypes_of_too_few_rows_are_refused():
    with pytest.raises(InputError, match="three different rows"):
        kmeans_prototypes(np.ones((8, 4)), seed=0)
    rows = np.eye(4)
    with pytest.raises(InputError, match="number of prototypes"):
        kmeans_prototypes(rows, k=4, seed=0)
    assert len(kmeans_prototypes(rows, k_max=50, seed=0).inertia) == 2  # 2 and 3: no more than different rows less one


def test_purity_tells_prototypes_that_split_by_modality():
    assert modality_purity(np.array([0, 0, 1]), np.array([2, 2, 2]), 3) == 1.0
    assert modality_purity(np.array([0, 1]), np.array([0, 1]), 2) == 0.5


# --- splits and batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(80, 100, [80]), (101, 100, [101]), (160, 100, [100, 60]), (5, 2, [3, 2])]
)
def test_no_batch_holds_a_single_pair(count, size, sizes):
    x = torch.zeros(count, 2)
    order = order_of(pair_batches(x, x, size, 0))
    assert [len(order.items(i)) for i in range(order.per_epoch)] == sizes
    assert sorted(itertools.chain(*(order.items(i) for i in range(order.per_epoch)))) == list(range(count))


class Watched(HashingSystem):
    """Remembers when epochs begin, the epoch of every batch, and what was drawn for it."""

    def __init__(self, fx):
        super().__init__(HashFunction(4, 8, hidden=0), fx, fx)
        self.begun, self.seen, self.drawn = [], [], []

    def begin_epoch(self, epoch, progress):
        self.begun.append((epoch, self.global_step))

    def terms(self, fx, fy, *, epoch, generator):
        self.seen.append(epoch)
        self.drawn.append(float(torch.randn(1, generator=generator)))
        return {"contrast": Term(0.5, self.model(fx).sum())}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("accumulate", "begun", "seen"),
    [
        (1, [(0, 0), (1, 3), (2, 6), (3, 9)], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        (3, [(0, 0), (1, 1), (2, 2), (3, 3)], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        (2, [(0, 0), (1, 2), (2, 3), (3, 5)], [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]),
    ],
)
def test_an_epoch_is_a_pass_over_the_pairs_however_many_batches_make_a_step(accumulate, begun, seen):
    system = Watched(unit(6, 4, dtype=torch.float32))
    settings = TrainSettings(epochs=4, accumulate=accumulate, progress=False, accelerator="cpu")
    fit_pairs(system, batch_size=2, settings=settings)
    assert (system.begun, system.seen) == (begun, seen)
    assert len(set(system.drawn)) == 12  # micro-batches draw differently


def test_standard_split_trains_inside_the_database(pairs, tmp_path):
    split = draw_split(pairs, pairs=12, queries=15, seed=3)
    group = split.groups["standard"]
    assert len(group.queries) == 15
    assert len(group.database) == 45
    assert set(split.train) <= set(group.database)
    split.write(tmp_path)
    assert Split.read(tmp_path) == split
    assert draw_split(pairs, pairs=12, queries=15, seed=3) == split
    assert draw_split(pairs, pairs=12, queries=15, seed=4) != split


def test_new_queries_are_none_of_the_training_pairs(pairs):
    split = draw_split(pairs, pairs=30, queries=15, seed=3)
    again = draw_split(pairs, queries=20, seed=5, trained_on=split.train).groups["standard"]
    assert len(again.queries) == 20
    assert not set(again.queries) & set(split.train)
    assert set(again.queries) | set(again.database) == set(pairs.ids)


def test_unseen_items_never_train(pairs):
    split = draw_split(pairs, protocol="seen-unseen", pairs=8, queries=4, class_seed=1)
    label = dict(zip(pairs.ids, pairs.labels.argmax(1), strict=True))
    seen = {pairs.classes.index(name) for name in split.seen}
    unseen_ids = set(split.groups["unseen"].queries) | set(split.groups["unseen"].database)
    assert {label[i] for i in split.train} <= seen
    assert not {label[i] for i in unseen_ids} & seen
    assert not unseen_ids & set(split.train)
    assert not set(split.train) & (set(split.groups["seen"].queries) | set(split.groups["seen"].database))


def test_items_of_both_kinds_of_classes_are_dropped():
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)
    classes, seen, unseen = divide_classes(labels, 0)
    assert classes.sum() == 1
    assert (seen | unseen).tolist() == [True, True, False, False]
    assert not (seen & unseen).any()


def test_splits_that_cannot_be_drawn_are_refused(pairs):
    unlabelled = PairFeatures(pairs.ids, pairs.image, pairs.text)
    with pytest.raises(InputError, match="needs labels"):
        draw_split(unlabelled, protocol="seen-unseen")
    with pytest.raises(InputError, match="training pairs does not fit"):
        draw_split(unlabelled, pairs=3)
    with pytest.raises(InputError, match="training pairs does not fit"):
        draw_split(unlabelled, pairs=61)
    assert len(draw_split(unlabelled).train) == 60
    with pytest.raises(InputError, match="number of queries"):
        draw_split(pairs, queries=60)
    single = PairFeatures(pairs.ids[:8], pairs.image[:8], pairs.text[:8], np.eye(8, dtype=np.uint8))
    with pytest.raises(InputError, match="too few labelled pairs"):
        draw_split(single.take(np.arange(3)))
    with pytest.raises(InputError, match="two relevant"):  # classes with one item each
        draw_split(single, queries=2)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_average_precision_of_four_items_under_both_tie_rules():
    codes = pack_codes(np.array([[1] * 8, [1] * 7 + [-1], [1] * 7 + [-1], [-1] * 8]))
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.uint8)
    found = direction_scores(codes[:1], labels[:1], codes[1:], labels[1:], bits=8)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # tie: the irrelevant one stands first in the database
    swapped = (1 + 2 / 3) / 2
    assert found["map_expected"] == pytest.approx((found["map"] + swapped) / 2)
    assert found["pr"]["radius"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found["pr"]["precision"][0] == 0.5
    assert found["pr"]["precision"][-1] == pytest.approx(2 / 3)
    assert found["pr"]["recall"] == [0.5] * 7 + [1.0]
    assert found["lookup"] == 0.5
    cut = direction_scores(
        codes[:1], labels[:1], codes[1:], labels[1:], bits=8, conventions=Conventions(map_at=2, denominator="retrieved")
    )
    assert cut["map"] == pytest.approx(1 / 2)


def test_queries_without_relevant_items_count_only_where_asked():
    codes = pack_codes(np.array([[1] * 8, [-1] * 8]))
    labels, alien = np.array([[1, 0], [1, 0]], np.uint8), np.array([[0, 1], [1, 0]], np.uint8)
    left_out = direction_scores(codes, alien, codes, labels, bits=8)
    counted = direction_scores(codes, alien, codes, labels, bits=8, conventions=Conventions(count_empty=True))
    assert left_out["without_relevant"] == 1
    assert counted["map"] == pytest.approx(left_out["map"] / 2)


class Swapped:
    """Codes whose two sides are exchanged."""

    def __init__(self, hashes):
        self.hashes, self.bits = hashes, hashes.bits

    def encode(self, features, modality):
        return self.hashes.encode(features, "text" if modality == "image" else "image")


def test_swapping_the_modalities_swaps_the_directions(pairs):
    model = cca_itq(pairs.image, pairs.text, 8, seed=0)
    split = draw_split(pairs, pairs=12, queries=15)
    mirrored = PairFeatures(pairs.ids, pairs.text, pairs.image, pairs.labels, pairs.classes)
    found = evaluate_split(model, pairs, split, where="x")["groups"]["standard"]
    other = evaluate_split(Swapped(model), mirrored, split, where="x")["groups"]["standard"]
    assert found["i2t"]["map"] == other["t2i"]["map"]
    assert found["t2i"]["continuous"] == other["i2t"]["continuous"]
    assert found["i2t"]["ratio"] == pytest.approx(found["i2t"]["map"] / found["i2t"]["continuous"])


# --- baselines --------------------------------------------------------------------------------------------------------


def test_baselines_find_classes_that_random_projections_miss_over_the_gap(pairs):
    labels = pairs.labels
    x, y = ((f + 2 * np.eye(16, dtype=np.float32)[side]) / 3 for side, f in enumerate((pairs.image, pairs.text)))

    def score(model):
        image, text = model.encode(x, "image"), model.encode(y, "text")
        return direction_scores(image, labels, text, labels, bits=16)["map_expected"]

    raw = score(random_projection(x, y, 16, centre=False, seed=0))
    for model in (random_projection(x, y, 16, centre=True, seed=0), itq(x, y, 16, seed=0), cca_itq(x, y, 16, seed=0)):
        assert model.bits == 16
        assert score(model) > raw + 0.1
    few = cca_itq(x[:6], y[:6], 32, seed=0)  # fewer pairs than bits
    assert few.encode(x, "image").shape == (60, 4)


def test_cca_finds_directions_scipy_style_and_itq_rotates_only(pairs):
    """Without ridge and rotation, canonical directions correlate as the singular values say."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(500, 2))
    x = np.concatenate([shared, rng.normal(size=(500, 2))], axis=1).astype(np.float32)
    y = (np.concatenate([shared, rng.normal(size=(500, 2))], axis=1) @ rng.normal(size=(4, 4))).astype(np.float32)
    model = cca_itq(x, y, 2, seed=0, ridge=1e-9, rounds=0)
    a, b = ((f - f.mean(0)) @ w for f, w in ((x, model.weights[0]), (y, model.weights[1])))
    assert np.corrcoef(a[:, 0], b[:, 0])[0, 1] > 0.98
    weights = itq(x, y, 3, seed=0).weights[0].astype(np.float64)
    np.testing.assert_allclose(weights.T @ weights, np.eye(3), atol=1e-5)


def test_djsrh_learns_and_repeats(pairs):
    def trained(epochs):
        training = TrainSettings(epochs=epochs, progress=False, accelerator="cpu")
        return train_djsrh(pairs, 16, DJSRHSettings(hidden=32, lr=3e-3), training=training)

    model, again, fresh = trained(25), trained(25), trained(1)
    assert np.array_equal(model.encode(pairs.image, "image"), again.encode(pairs.image, "image"))
    split = draw_split(pairs, queries=15)
    first, last = (evaluate_split(each, pairs, split, where="x")["groups"]["standard"] for each in (fresh, model))
    assert last["i2t"]["map"] > first["i2t"]["map"] + 0.1


def test_held_out_pairs_find_each_other_only_with_codes_that_mean_something(pairs):
    good = pair_recall(cca_itq(pairs.image, pairs.text, 32, seed=0), pairs)
    chance = sum(1 / k for k in range(1, 61)) / 60
    assert good > 2 * chance
