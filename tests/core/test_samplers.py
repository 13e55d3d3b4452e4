"""Samplers, views and divisions: what every batch promises, coverage, seeds, processes, resuming."""

from collections import Counter

import numpy as np
import pytest
import torch
from contrastive_core.data import (
    MPerClassSampler,
    TwoStreamSampler,
    TwoView,
    UniqueIdBatchSampler,
    ViewDataset,
    group_split,
    partition_dirichlet,
    partition_shards,
)
from contrastive_core.errors import InputError
from contrastive_core.training import batches
from torch.utils.data import DataLoader, TensorDataset

LABELS = np.repeat(np.arange(9), [40, 25, 12, 9, 7, 4, 3, 2, 1])
IDS = np.array(["a"] * 7 + ["b"] * 3 + list("cdefghijklmnopqrstuvw"))

MAKERS = {
    "m per class": lambda **options: MPerClassSampler(LABELS, 8, m=4, **options),
    "unique": lambda **options: UniqueIdBatchSampler(IDS, 4, **options),
    "unique, all": lambda **options: UniqueIdBatchSampler(IDS, 4, drop_last=False, **options),
    "two streams": lambda **options: TwoStreamSampler(range(10), range(10, 50), 6, labelled_per_batch=2, **options),
}


def shares(order, processes):
    """What each process sees of every batch of the first epoch."""
    order.share(processes)
    return [[order.part(batch, rank).tolist() for rank in range(processes)] for batch in order.plan(0)]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestEveryOrder:
    def test_epochs_repeat_by_seed_and_differ(self, make):
        first, second, other = make(seed=3), make(seed=3), make(seed=4)
        epochs = [list(first), list(first)]
        assert epochs == [list(second), list(second)]
        assert epochs[0] != epochs[1]
        assert epochs[0] != list(other)
        assert [len(each) for each in epochs] == [first.per_epoch] * 2
        assert [batch.tolist() for batch in second.plan(1)] == epochs[1]

    def test_processes_share_the_batches_of_one(self, make):
        order = make()
        for parts, batch in zip(shares(order, 2), make().plan(0), strict=True):
            assert len(parts[0]) == len(parts[1]) == len(batch) // 2
            assert not Counter(index for part in parts for index in part) - Counter(batch.tolist())

    @pytest.mark.parametrize("stop", [0, 1, 2])
    def test_starts_at_any_batch(self, make, stop):
        whole = make(seed=1)
        whole.last = 2 * whole.per_epoch
        later = make(seed=1)
        later.first, later.last = whole.per_epoch + stop, 2 * whole.per_epoch
        assert list(later) == list(whole)[whole.per_epoch + stop :]

    def test_a_loader_takes_it(self, make):
        data = TensorDataset(torch.arange(len(LABELS)))
        loader = batches(data, order=make(seed=2))
        drawn = [batch.tolist() for (batch,) in loader]
        assert drawn == [batch.tolist() for batch in make(seed=2).plan(0)]


def most_batches(groups, per_batch):
    """The most batches of different classes, by always using the classes with most left."""
    groups, count = list(groups), 0
    while sum(group > 0 for group in groups) >= per_batch:
        for place in np.argsort(groups)[::-1][:per_batch]:
            groups[place] -= 1
        count += 1
    return count


class TestMPerClass:
    @pytest.mark.parametrize(("batch", "m", "world"), [(8, 4, 1), (8, 2, 2), (6, 3, 3), (4, 1, 2)])
    def test_every_batch_has_m_items_of_different_classes(self, batch, m, world):
        order = MPerClassSampler(LABELS, batch * world, m=m)
        groups = [-(-size // m) for size in np.bincount(LABELS)]
        assert order.per_epoch == most_batches(groups, batch * world // m)
        for parts in shares(order, world):
            classes = [Counter(LABELS[part].tolist()) for part in parts]
            assert all(count == m for each in classes for count in each.values())
            assert len(set().union(*classes)) == batch * world // m  # no class in two processes
        with pytest.raises(InputError, match="do not divide"):
            MPerClassSampler(LABELS, 3 * m, m=m).share(2)

    def test_items_repeat_only_in_classes_that_are_too_small(self):
        for batch in MPerClassSampler(LABELS, 8, m=4):
            for label in set(LABELS[batch].tolist()):
                members = [index for index in batch if LABELS[index] == label]
                assert len(set(members)) == min(4, int((label == LABELS).sum())) or (label == LABELS).sum() < 4

    def test_over_epochs_everything_comes(self):
        sampler = MPerClassSampler(LABELS, 8, m=4)
        seen = {index for _ in range(12) for batch in sampler for index in batch}
        assert seen == set(range(len(LABELS)))
        balanced = np.repeat(np.arange(6), 8)
        drawn = sorted(index for batch in MPerClassSampler(balanced, 8, m=4) for index in batch)
        assert drawn == list(range(48))

    def test_names_as_labels_and_refusals(self):
        assert len(MPerClassSampler(["x", "y", "x", "y"], 4, m=2)) == 1
        with pytest.raises(InputError, match="whole groups"):
            MPerClassSampler(LABELS, 7, m=4)
        with pytest.raises(InputError, match="too few classes"):
            MPerClassSampler(LABELS, 40, m=4)
        with pytest.raises(InputError, match="one value"):
            MPerClassSampler([], 4)


class TestUniqueIds:
    @pytest.mark.parametrize("world", [1, 2])
    @pytest.mark.parametrize("drop_last", [True, False])
    def test_no_id_twice_over_all_processes(self, world, drop_last):
        order, drawn = UniqueIdBatchSampler(IDS, 4 * world, drop_last=drop_last), []
        for batch in order:
            assert len(set(IDS[batch])) == len(batch) <= 4 * world
            assert len(batch) == 4 * world or not drop_last
            drawn += batch
        assert len(set(drawn)) == len(drawn)
        if not drop_last:
            assert sorted(drawn) == list(range(len(IDS)))
        else:
            assert order.per_epoch == most_batches(Counter(IDS.tolist()).values(), 4 * world)

    def test_one_frequent_id_makes_small_batches_or_is_refused(self):
        ids = [0] * 10 + [1]
        sampler = UniqueIdBatchSampler(ids, 4, drop_last=False)
        assert sorted(len(batch) for batch in sampler) == [1] * 9 + [2]
        with pytest.raises(InputError, match="too few ids"):
            UniqueIdBatchSampler(ids, 4)


class TestTwoStreams:
    @pytest.mark.parametrize("world", [1, 2])
    @pytest.mark.parametrize(("epoch_of", "count"), [("unlabelled", 10), ("labelled", 5), ("longest", 10)])
    def test_shares_and_order(self, world, epoch_of, count):
        order = TwoStreamSampler(range(10), range(10, 50), 6 * world, labelled_per_batch=2 * world, epoch_of=epoch_of)
        epochs = shares(order, world)
        assert len(epochs) == count // world
        assert all([index < 10 for index in part] == [True] * 2 + [False] * 4 for each in epochs for part in each)
        primary = [
            index for each in epochs for batch in each for index in batch if (index < 10) == (epoch_of == "labelled")
        ]
        assert len(set(primary)) == len(primary)

    def test_the_short_stream_runs_evenly_over_epochs(self):
        sampler = TwoStreamSampler(range(7), range(10, 50), 6, labelled_per_batch=2)
        counts = Counter(index for _ in range(7) for batch in sampler for index in batch if index < 10)
        assert set(counts.values()) == {20}  # 7 epochs of 20 labelled draws over 7 items

    def test_refusals(self):
        with pytest.raises(InputError, match="two sets"):
            TwoStreamSampler([0, 1], [1, 2], 2, labelled_per_batch=1)
        with pytest.raises(InputError, match="two sets"):
            TwoStreamSampler([], [1, 2], 2, labelled_per_batch=1)
        with pytest.raises(InputError, match="both streams"):
            TwoStreamSampler([0], [1, 2], 2, labelled_per_batch=2)
        with pytest.raises(InputError, match="too few items"):
            TwoStreamSampler([0], [1, 2], 8, labelled_per_batch=1)


class TestViews:
    @staticmethod
    def noise(x):
        return x + torch.rand(x.shape)

    def test_draws_depend_on_seed_draw_and_index_alone(self):
        x = torch.zeros(3)
        two = TwoView(self.noise, seed=1)
        before = torch.get_rng_state()
        first, second = two(x, index=4).views
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        assert torch.equal(two(x, index=4).views[0], first)
        others = [two(x, index=5), two(x, index=4, draw=1), TwoView(self.noise)(x, index=4)]
        assert all(not torch.equal(each.views[0], first) for each in others)
        assert not torch.equal(first, second)

    def test_a_mask_can_follow_its_image(self):
        two = TwoView(lambda x: x.roll(int(torch.randint(0, 100, ())), dims=0))
        image = torch.arange(100)
        seen = two(image, index=0)
        mask = two.replay(image >= 50, seen.seeds)
        assert all(torch.equal(view >= 50, each) for view, each in zip(seen.views, mask, strict=True))

    def test_other_transforms_and_the_data_set(self):
        data = ViewDataset(torch.zeros(5, 2), TwoView(self.noise, lambda x: x - 1, lambda x: x + 1))
        first, second, third = next(iter(DataLoader(data, batch_size=5)))
        assert (second == -1).all()
        assert (third == 1).all()
        assert len(first.unique()) == 10
        assert torch.equal(first, next(iter(DataLoader(data, batch_size=5)))[0])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_every_batch_of_a_run_draws_other_views(self, workers):
        data = ViewDataset(torch.zeros(4, 2), TwoView(self.noise))
        loader = batches(data, 2, seed=0, workers=workers)
        first = [views for views, _ in loader]
        second = [views for views, _ in loader]
        assert len(torch.cat(first + second).unique()) == 16
        again = [views for views, _ in batches(data, 2, seed=0)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class TestDivisions:
    @pytest.mark.parametrize("balanced", [True, False])
    @pytest.mark.parametrize("alpha", [0.001, 0.1, 1, 1000])
    def test_dirichlet_is_complete_and_skewed_by_alpha(self, alpha, balanced):
        labels = np.random.default_rng(0).integers(0, 10, 1000)
        parts = partition_dirichlet(labels, 8, alpha, balanced=balanced, min_size=0)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
        if balanced:
            assert {len(part) for part in parts} == {125}
        if alpha == 1000:
            shares = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
            assert np.abs(np.array(shares) - 0.1).max() < 0.12  # 4 standard deviations of 125 draws
        if alpha <= 0.1:
            most = [np.bincount(labels[part]).max() / len(part) for part in parts if len(part)]
            assert np.mean(most) > 0.4
        again = partition_dirichlet(labels, 8, alpha, balanced=balanced, min_size=0)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
        other = partition_dirichlet(labels, 8, alpha, balanced=balanced, min_size=0, seed=1)
        assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))

    def test_least_size(self):
        labels = np.random.default_rng(0).integers(0, 10, 1000)
        assert min(map(len, partition_dirichlet(labels, 8, 0.3, balanced=False, min_size=40))) >= 40
        with pytest.raises(InputError, match="no division"):
            partition_dirichlet(labels, 8, 0.01, balanced=False, min_size=120)
        with pytest.raises(InputError, match="cannot be divided"):
            partition_dirichlet(labels, 8, 0.0)
        with pytest.raises(InputError, match="cannot be divided"):
            partition_dirichlet(labels, 8, 1.0, min_size=126)

    @pytest.mark.parametrize("shards", [1, 2, 3])
    def test_shards_bound_the_classes_of_a_client(self, shards):
        labels = np.repeat(np.arange(12), 10)
        parts = partition_shards(labels, 12 // shards if shards < 3 else 4, shards=shards)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(120))
        assert max(len(np.unique(labels[part])) for part in parts) <= shards
        with pytest.raises(InputError, match="shards"):
            partition_shards(labels, 100)

    def test_no_group_on_both_sides(self):
        g = np.random.default_rng(0)
        groups = g.integers(0, 30, 300).astype(str)
        labels = g.integers(0, 3, 300)
        folds = group_split(labels, groups, folds=4, seed=1)
        assert np.array_equal(np.sort(np.concatenate([held for _, held in folds])), np.arange(300))
        for train, held in folds:
            assert not set(groups[train]) & set(groups[held])
            assert len(train) + len(held) == 300
        for folds in (1, 31):
            with pytest.raises(InputError, match="folds"):
                group_split(labels, groups, folds=folds)

    @pytest.mark.unchecked
    def test_groups_of_another_number_are_refused(self):
        with pytest.raises(InputError, match="folds"):
            group_split(np.zeros(5), np.arange(9))
