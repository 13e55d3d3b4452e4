"""Every loss on several processes with uneven batches against one process with the whole batch, in float64.

The reference is the loss of the concatenated batch; what is compared are the parameter gradients after the averaging of
data-parallel training, the gradient of a learned temperature included. One group of processes runs all losses, because
starting torch takes most of the time.
"""

import json
import os
import subprocess
import sys

import pytest

WORKER = """
import json, sys, torch, torch.distributed as dist
from contrastive_core import losses as L
torch.set_num_threads(1)
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
g = torch.Generator().manual_seed(0)
counts = [4, 3, 5, 1][:world]
n = sum(counts)
x, y = torch.randn(n, 6, generator=g, dtype=torch.double), torch.randn(n, 6, generator=g, dtype=torch.double)
labels, ids = torch.arange(n) % 3, torch.arange(n) // 2
start = torch.randn(6, 4, generator=g, dtype=torch.double)
prototypes = torch.randn(3, 4, generator=g, dtype=torch.double)
queue = torch.randn(5, 4, generator=g, dtype=torch.double)
teacher_queue = torch.randn(5, 6, generator=g, dtype=torch.double)
some = torch.where(torch.arange(n) % 4 == 1, -1, labels)

class Batch:
    def __init__(self, part, w, t, c, gather):
        self.x, self.y, self.labels, self.ids, self.some = x[part], y[part], labels[part], ids[part], some[part]
        self.a, self.b, self.t, self.c, self.gather = self.x @ w, self.y @ w.tanh(), t, c, gather

def ring(b):
    return b.gather and "ring"

LOSSES = {
    "info_nce": lambda b: L.info_nce(b.a, b.b, temperature=b.t, gather=b.gather),
    "info_nce tiles": lambda b: L.info_nce(b.a, b.b, temperature=b.t, gather=b.gather, tile=2),
    "info_nce ids": lambda b: L.info_nce(b.a, b.b, temperature=b.t, ids=b.ids, gather=b.gather),
    "info_nce queue": lambda b: L.info_nce(b.a, b.b, temperature=b.t, queue=queue, gather=b.gather),
    "info_nce ring": lambda b: L.info_nce(b.a, b.b, temperature=b.t, gather=ring(b)),
    "info_nce ring ids": lambda b: L.info_nce(b.a, b.b, temperature=b.t, ids=b.ids, symmetric=True, gather=ring(b)),
    "info_nce ring cold": lambda b: L.info_nce(b.a, b.b, temperature=b.t / 50, gather=ring(b), tile=2),
    "moco_v3": lambda b: L.moco_v3(b.a, b.b, b.x[:, :4], b.y[:, :4], temperature=b.t, gather=b.gather),
    "clip_loss": lambda b: L.clip_loss(b.a, b.b, logit_scale=1 / b.t, gather=b.gather),
    "clip_loss ring": lambda b: L.clip_loss(b.a, b.b, logit_scale=1 / b.t, gather=ring(b)),
    "nt_xent": lambda b: L.nt_xent(b.a, b.b, temperature=b.t, gather=b.gather),
    "nt_xent ids": lambda b: L.nt_xent(b.a, b.b, temperature=b.t, ids=b.ids, gather=b.gather),
    "nt_xent ring": lambda b: L.nt_xent(b.a, b.b, temperature=b.t, gather=ring(b), tile=3),
    "nt_xent ring ids": lambda b: L.nt_xent(b.a, b.b, temperature=b.t, ids=b.ids, gather=ring(b)),
    "sup_con out": lambda b: L.sup_con(b.a, b.labels, temperature=b.t, gather=b.gather),
    "sup_con in": lambda b: L.sup_con(b.a, b.labels, temperature=b.t, positives="in", gather=b.gather),
    "siglip": lambda b: L.siglip(b.a, b.b, logit_scale=1 / b.t, logit_bias=-b.t, gather=b.gather),
    "siglip ids": lambda b: L.siglip(b.a, b.b, logit_scale=1 / b.t, ids=b.ids, gather=b.gather, tile=2),
    "decoupled": lambda b: L.decoupled(b.a, b.b, temperature=b.t, gather=b.gather),
    "decoupled weighted": lambda b: L.decoupled(b.a, b.b, temperature=b.t, sigma=0.5, ids=b.ids, gather=b.gather),
    "debiased": lambda b: L.debiased(b.a, b.b, temperature=b.t, gather=b.gather),
    "hard_negative": lambda b: L.hard_negative(b.a, b.b, temperature=b.t, ids=b.ids, gather=b.gather),
    "spectral": lambda b: L.spectral_contrastive(b.a, None, b.b, None, gather=b.gather),
    "spectral variances": lambda b: L.spectral_contrastive(
        b.a, b.b.square(), b.b, b.a.square(), negatives="both", gather=b.gather
    ),
    "negative_cosine": lambda b: L.negative_cosine(b.a, b.b, gather=b.gather),
    "byol": lambda b: L.byol(b.a, b.b, gather=b.gather),
    "barlow_twins": lambda b: L.barlow_twins(b.a, b.b, off_diagonal=0.1, gather=b.gather),
    "vicreg": lambda b: L.vicreg(b.a / 3, b.b, gather=b.gather),
    "swav": lambda b: L.swav([b.a, b.b, b.a + b.b], b.c, temperature=b.t, gather=b.gather),
    "sup_con some": lambda b: L.sup_con(b.a, b.some, temperature=b.t, gather=b.gather),
    "proto_nce": lambda b: L.proto_nce(b.a, b.some, b.c, temperature=b.t, gather=b.gather),
    "dec": lambda b: L.dec(L.student_t_assignment(b.a, b.c), gather=b.gather),
    "contrastive_clustering": lambda b: L.contrastive_clustering(
        b.a, b.b, (b.a @ b.c.T).softmax(1), (b.b @ b.c.T).softmax(1), gather=b.gather
    ),
    "distillation": lambda b: L.distillation(b.a, b.y[:, :4], gather=b.gather),
    "relational": lambda b: L.relational_distillation(
        b.a, b.y, student_temperature=b.t, teacher_temperature=0.3, gather=b.gather
    ),
    "relational anchors": lambda b: L.relational_distillation(
        b.a, b.y, student_temperature=b.t, student_anchors=queue, teacher_anchors=teacher_queue, gather=b.gather
    ),
    "mmd": lambda b: L.mmd(b.a, b.b[1:] if rank_of(b) == 0 else b.b, sigma="multi", gather=b.gather),
    "cka": lambda b: L.cka(b.a, b.b, gather=b.gather),
    "cka debiased": lambda b: L.cka(b.a, b.b, debiased=True, gather=b.gather),
    "quantization": lambda b: L.quantization(b.a, gather=b.gather),
    "bit_balance": lambda b: L.bit_balance(b.a, gather=b.gather),
    "bit_decorrelation": lambda b: L.bit_decorrelation(b.a, gather=b.gather),
    "flops": lambda b: L.flops(L.non_negative(b.a), gather=b.gather),
}

def rank_of(b):
    return rank if b.gather else 0

def run(loss, part, gather):
    w, c = start.clone().requires_grad_(), prototypes.clone().requires_grad_()
    t = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    value = loss(Batch(part, w, t, c, gather))
    found = torch.autograd.grad(value, (w, t, c), allow_unused=True)
    parts = [value.detach().reshape(1)]
    parts += [torch.zeros_like(v).flatten() if f is None else f.flatten() for f, v in zip(found, (w, t, c))]
    return torch.cat(parts)

reference = {name: run(loss, slice(None), False) for name, loss in LOSSES.items()}
dist.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
report = {}
for name, loss in LOSSES.items():
    total = run(loss, mine, True)
    dist.all_reduce(total)
    mean, wanted = total / world, reference[name]
    report[name] = {
        "value": float((mean - wanted)[0].abs()),
        "gradient": float((mean - wanted)[1:].abs().max() / wanted[1:].abs().max().clamp(min=1)),
        "scale": float(mean[1:] @ wanted[1:] / wanted[1:].square().sum()),
        "cosine": float(torch.nn.functional.cosine_similarity(mean[1:], wanted[1:], dim=0)),
        "size": float(wanted[1:].abs().max()),
    }

# The gradient cache around DistributedDataParallel: an encoder for both views, exchanged once, in the last chunk.
from contrastive_core.efficient import GradCache

def fresh():
    net = torch.nn.Linear(6, 4, bias=False, dtype=torch.double)
    with torch.no_grad():
        net.weight.copy_(start.T)
    return net

whole = fresh()
L.nt_xent(whole(x), whole(y)).backward()
parallel = torch.nn.parallel.DistributedDataParallel(fresh())
GradCache(parallel, lambda a, b: L.nt_xent(a, b, gather=True), chunk=2).backward(x[mine], y[mine])
report["cached"] = float((parallel.module.weight.grad - whole.weight.grad).abs().max())
# A gradient penalty: every process gets the gradient of the sum of all penalties, of all its own rows.
for name in ("info_nce", "clip_loss", "nt_xent", "sup_con out", "siglip", "vicreg", "info_nce ring"):
    def penalty(part, gather):
        rows = x[part, :4].clone().requires_grad_()
        batch = Batch(part, start, torch.tensor(0.3, dtype=torch.double), prototypes, gather)
        batch.a, batch.b = rows, batch.b.detach()
        (first,) = torch.autograd.grad(LOSSES[name](batch), rows, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum() * (1 if gather else world**2), rows)
        return second
    if name == "info_nce ring":
        try:
            report["ring"] = float(penalty(mine, True).sum()) if world > 1 else "no second derivatives"
        except RuntimeError as error:
            report["ring"] = str(error)
        continue
    found = [torch.zeros_like(x[:, :4]), penalty(slice(None), False)]
    found[0][mine] = penalty(mine, True)
    dist.all_reduce(found[0])
    report["second " + name] = float((found[0] - found[1]).abs().max() / found[1].abs().max())
if rank == 0:
    print(json.dumps(report))
dist.destroy_process_group()
"""


def run(tmp_path, world):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1].decode()
    return json.loads(outputs[0][0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_averaged_gradients_equal_one_process(tmp_path, world):
    report = run(tmp_path, world)
    assert report.pop("cached") < 1e-10
    assert "no second derivatives" in report.pop("ring")
    second = {name: report.pop(name) for name in list(report) if name.startswith("second")}
    assert len(second) == 6
    assert max(second.values()) < 1e-9, second
    assert len(report) == 43
    for name, found in report.items():
        assert found["size"] > 1e-4, name  # a gradient of zero would equal anything
        assert found["gradient"] < 1e-10, (name, found)
        assert found["value"] < 1e-10, (name, found)
        assert abs(found["scale"] - 1) < 1e-9, (name, found)
        assert abs(found["cosine"] - 1) < 1e-9, (name, found)
