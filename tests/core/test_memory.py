"""Memories: order, state, invariances, and the same contents on every process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from contrastive_core.losses import info_nce
from contrastive_core.memory import FeatureQueue, InstanceBank, NeighbourSupport, PrototypeBank, Reservoir


def rand(*shape, seed=0, dtype=torch.float):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def column(*values):
    return torch.tensor(values, dtype=torch.float)[:, None]


class TestFeatureQueue:
    @pytest.mark.parametrize("batches", [[10], [3, 3, 4], [1] * 10, [7, 3]])
    def test_the_last_rows_stay_in_order(self, batches):
        queue = FeatureQueue(1, 4, normalize=False)
        values = torch.arange(10.0)[:, None]
        for part in values.split(batches):
            queue.push(part, labels=part[:, 0].long() * 2, ids=part[:, 0].long() + 100)
        features, labels, ids = queue.entries()
        assert features[:, 0].tolist() == [6, 7, 8, 9]
        assert labels.tolist() == [12, 14, 16, 18]
        assert ids.tolist() == [106, 107, 108, 109]

    def test_only_what_was_pushed_takes_part(self):
        queue = FeatureQueue(3, 100)
        assert len(queue) == len(queue.entries().features) == 0
        queue.push(rand(5, 3) * 9)
        assert len(queue.entries().features) == 5
        torch.testing.assert_close(queue.entries().features.norm(dim=1), torch.ones(5))
        assert queue.entries().labels.tolist() == [-1] * 5

    def test_a_reloaded_queue_gives_the_same_next_batches(self, tmp_path):
        queue = FeatureQueue(3, 7)
        for step in range(3):
            queue.push(rand(4, 3, seed=step), ids=torch.arange(4) + 4 * step)
        torch.save(queue.state_dict(), tmp_path / "queue.pt")
        again = FeatureQueue(3, 7)
        again.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
        for step in range(3, 8):
            query, key = rand(4, 3, seed=10 + step), rand(4, 3, seed=20 + step)
            losses = [info_nce(query, key, queue=each.entries().features) for each in (queue, again)]
            assert losses[0] == losses[1]
            for each in (queue, again):
                each.push(key, ids=torch.arange(4) + 4 * step)
            assert queue.checksum() == again.checksum()
        again.push(rand(1, 3))
        assert queue.checksum() != again.checksum()

    def test_pushing_before_the_backward_pass_is_allowed(self):
        queue = FeatureQueue(3, 4)
        queue.push(rand(4, 3))
        query = rand(2, 3, seed=1).requires_grad_()
        loss = info_nce(query, rand(2, 3, seed=2), queue=queue.entries().features)
        want = torch.autograd.grad(loss, query, retain_graph=True)[0]
        queue.push(rand(4, 3, seed=3))
        assert torch.equal(torch.autograd.grad(loss, query)[0], want)

    def test_own_older_embeddings_can_be_left_out(self):
        queue = FeatureQueue(1, 6, normalize=False)
        queue.push(column(1, 2, 3, 4), ids=torch.tensor([5, 6, 7, 5]))
        left = queue.entries(without_ids=torch.tensor([5, 9]))
        assert left.features[:, 0].tolist() == [2, 3]
        assert left.ids.tolist() == [6, 7]

    def test_half_the_memory(self):
        queue = FeatureQueue(8, 16, dtype=torch.bfloat16)
        queue.push(rand(4, 8))
        assert queue.entries().features.dtype == torch.bfloat16
        assert len(queue.checksum()) == 64

    @pytest.mark.unchecked
    def test_refusals(self):
        queue = FeatureQueue(3, 4)
        with pytest.raises(ValueError, match="expected"):
            queue.push(rand(2, 5))
        with pytest.raises(ValueError, match="labels"):
            queue.push(rand(2, 3), labels=torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match="at least 1"):
            FeatureQueue(3, 0)


class TestNeighbourSupport:
    def test_nearest_of_what_was_pushed(self):
        support = NeighbourSupport(4, 50)
        bank, query = rand(20, 4), rand(7, 4, seed=1)
        support.push(bank, ids=torch.arange(20))
        rows, cosine = support.nearest(query, k=3, chunk=2)
        want = torch.cosine_similarity(query[:, None], bank, dim=2).topk(3)
        torch.testing.assert_close(cosine, want.values)
        torch.testing.assert_close(rows, torch.nn.functional.normalize(bank, dim=1)[want.indices])

    def test_an_item_is_not_its_own_neighbour(self):
        support = NeighbourSupport(4, 50)
        bank = rand(20, 4)
        support.push(bank, ids=torch.arange(20))
        assert support.nearest(bank)[1].min() > 1 - 1e-6
        assert support.nearest(bank, ids=torch.arange(20))[1].max() < 1 - 1e-6

    def test_too_few_rows_are_refused(self):
        support = NeighbourSupport(4, 50)
        with pytest.raises(ValueError, match="push some first"):
            support.nearest(rand(2, 4))
        support.push(rand(2, 4), ids=torch.tensor([3, 3]))
        with pytest.raises(ValueError, match="another id"):
            support.nearest(rand(1, 4), ids=torch.tensor([3]))


class TestInstanceBank:
    def test_first_the_embedding_then_halfway(self):
        bank = InstanceBank(4, 2, normalize=False)
        bank.update(torch.tensor([2]), torch.tensor([[4.0, 0.0]]))
        assert bank.slots[2].tolist() == [4, 0]
        bank.update(torch.tensor([2, 2, 0]), torch.tensor([[0.0, 0.0], [0.0, 4.0], [1.0, 1.0]]))
        assert bank(torch.tensor([2, 0, 1])).tolist() == [[2, 1], [1, 1], [0, 0]]
        assert bank.seen.tolist() == [True, False, True, False]

    def test_unit_rows_and_refusals(self):
        bank = InstanceBank(4, 3)
        bank.update(torch.arange(4), 5 * rand(4, 3))
        bank.update(torch.arange(4), 5 * rand(4, 3, seed=1))
        torch.testing.assert_close(bank.slots.norm(dim=1), torch.ones(4))
        with pytest.raises(ValueError, match="ids lie"):
            bank.update(torch.tensor([4]), rand(1, 3))
        with pytest.raises(ValueError, match="momentum"):
            InstanceBank(4, 3, momentum=1.5)


class TestPrototypeBank:
    def test_one_step_towards_the_mean_of_the_class(self):
        bank = PrototypeBank(3, 2, momentum=0.9, normalize=False)
        bank.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
        bank.update(torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([1, 1]))
        torch.testing.assert_close(bank.prototypes[1, 0], torch.tensor([0.9, 0.3]))
        assert bank.counts[:, 0].tolist() == [0, 3, 0]
        assert bank().abs().sum(2)[[0, 2]].sum() == 0

    @pytest.mark.parametrize("per_class", [1, 3])
    def test_the_order_of_rows_does_not_matter(self, per_class):
        banks = [PrototypeBank(4, 5, per_class=per_class, momentum=0.5) for _ in range(2)]
        for step in range(5):
            x, y = rand(40, 5, seed=step), torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(step))
            order = torch.randperm(40, generator=torch.Generator().manual_seed(100 + step))
            banks[0].update(x, y)
            banks[1].update(x[order], y[order])
        torch.testing.assert_close(banks[0].prototypes, banks[1].prototypes, atol=1e-6, rtol=0)
        assert torch.equal(banks[0].counts, banks[1].counts)

    def test_several_prototypes_find_the_modes(self):
        modes = torch.eye(6)[:3]
        bank = PrototypeBank(1, 6, per_class=3, momentum=0.9)
        for step in range(5):
            x = modes.repeat(10, 1) + 0.05 * rand(30, 6, seed=step)
            bank.update(x, torch.zeros(30, dtype=torch.long))
        cosine = torch.nn.functional.normalize(bank.prototypes[0], dim=1) @ modes.T
        assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2]
        assert cosine.amax(1).min() > 0.99
        assert bank.counts.tolist() == [[50, 50, 50]]

    def test_equal_rows_start_one_prototype(self):
        bank = PrototypeBank(1, 3, per_class=3)
        bank.update(torch.ones(5, 3), torch.zeros(5, dtype=torch.long))
        assert bank.seen.tolist() == [[True, False, False]]

    def test_refusals(self):
        with pytest.raises(ValueError, match="labels lie"):
            PrototypeBank(2, 3).update(rand(1, 3), torch.tensor([2]))
        with pytest.raises(ValueError, match="at least one"):
            PrototypeBank(2, 3, per_class=0)


class TestReservoir:
    @pytest.mark.parametrize("batches", [[100], [1] * 100, [33, 33, 34]])
    def test_cuts_into_batches_do_not_matter(self, batches):
        values = torch.arange(100.0)[:, None]
        whole, parts = Reservoir(1, 8, seed=5), Reservoir(1, 8, seed=5)
        whole.push(values, labels=values[:, 0].long())
        for part in values.split(batches):
            parts.push(part, labels=part[:, 0].long())
        assert torch.equal(whole.rows(), parts.rows())
        assert torch.equal(whole.labels, whole.features[:, 0].long())
        other = Reservoir(1, 8, seed=6)
        other.push(values)
        assert not torch.equal(other.rows(), whole.rows())

    def test_a_reloaded_reservoir_goes_on_the_same(self):
        first = Reservoir(1, 8)
        first.push(torch.arange(50.0)[:, None])
        again = Reservoir(1, 8)
        again.load_state_dict(first.state_dict())
        for each in (first, again):
            each.push(torch.arange(50.0, 200.0)[:, None])
        assert torch.equal(first.rows(), again.rows())

    def test_every_row_is_kept_equally_often(self):
        hits = torch.zeros(50)
        for seed in range(400):
            reservoir = Reservoir(1, 5, seed=seed)
            reservoir.push(torch.arange(50.0)[:, None])
            hits[reservoir.rows()[:, 0].long()] += 1
        # Expected 40 each, standard deviation 6; the chi-square of 49 degrees of freedom is below 86 in 99.9 %.
        assert float(((hits - 40) ** 2 / 40).sum()) < 86
        assert len(Reservoir(1, 5).rows()) == 0


WORKER = """
import json, sys, torch, torch.distributed as dist
from contrastive_core.evaluation import PairGeometry, RetrievalRanking, Spectrum
from contrastive_core.memory import FeatureQueue, InstanceBank, PrototypeBank, Reservoir
torch.set_num_threads(1)
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counts = [4, 3][:world]
mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
def run(part):
    queue, bank = FeatureQueue(4, 10), PrototypeBank(3, 4, per_class=2)
    items, reservoir = InstanceBank(20, 4), Reservoir(4, 5)
    ranking = RetrievalRanking(torch.eye(4), torch.arange(4), measures=("mrr",))
    pairs, spectrum = PairGeometry(), Spectrum()
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(7, 4, generator=g)[part], torch.randint(0, 3, (7,), generator=g)[part]
        ids = torch.randint(0, 20, (7,), generator=g)[part]
        queue.push(x, y, ids); bank.update(x, y); items.update(ids, x); reservoir.push(x, y)
        ranking.update(x, y); pairs.update(x, x.flip(1)); spectrum.update(x)
    scores = [ranking.compute()["mrr"], *pairs.compute().values(), spectrum.effective_rank()]
    return queue, [queue.features, bank.prototypes, items.slots, reservoir.features, torch.tensor(scores)]
_, want = run(slice(None))
dist.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
queue, got = run(mine)
queue.check_synchronized()
worst = max(float((a - b).abs().max()) for a, b in zip(got, want))
if rank == 0:
    queue.features[0] += 1
try:
    queue.check_synchronized()
    noticed = False
except RuntimeError:
    noticed = True
print(json.dumps([worst, noticed, queue.entries().labels.tolist()]))
dist.destroy_process_group()
"""


def test_two_processes_hold_what_one_holds(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), "2", str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1].decode() + outputs[1][1].decode()
    first, second = (json.loads(output.decode().strip().splitlines()[-1]) for output, _ in outputs)
    assert first[0] < 1e-6
    assert second[0] < 1e-6
    assert first[1]
    assert second[1]
    assert first[2] == second[2]
