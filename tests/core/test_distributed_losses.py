"""Two and three processes with uneven batches against one process with the whole batch, in float64."""

import json
import os
import subprocess
import sys

import pytest

WORKER = """
import json, sys, torch, torch.distributed as dist
from contrastive_core.losses import clip_loss, info_nce, nt_xent, sup_con
torch.set_num_threads(1)
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
g = torch.Generator().manual_seed(0)
counts = [4, 3, 5][:world]
n = sum(counts)
x, y = torch.randn(n, 6, generator=g, dtype=torch.double), torch.randn(n, 6, generator=g, dtype=torch.double)
labels, ids = torch.arange(n) % 3, torch.arange(n) // 2
start = torch.randn(6, 4, generator=g, dtype=torch.double)
losses = {
    "info_nce": lambda a, b, l, i, t, gather: info_nce(a, b, temperature=t, gather=gather),
    "info_nce ids": lambda a, b, l, i, t, gather: info_nce(a, b, temperature=t, ids=i, gather=gather),
    "clip": lambda a, b, l, i, t, gather: clip_loss(a, b, logit_scale=1 / t, gather=gather),
    "nt_xent": lambda a, b, l, i, t, gather: nt_xent(a, b, temperature=t, gather=gather),
    "sup_con out": lambda a, b, l, i, t, gather: sup_con(a, l, temperature=t, gather=gather),
    "sup_con in": lambda a, b, l, i, t, gather: sup_con(a, l, temperature=t, positives="in", gather=gather),
}
def gradients(loss, part, gather):
    w = start.clone().requires_grad_()
    t = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    value = loss(x[part] @ w, y[part] @ w.tanh(), labels[part], ids[part], t, gather)
    return torch.cat([each.flatten() for each in torch.autograd.grad(value, (w, t))])
reference = {name: gradients(loss, slice(None), False) for name, loss in losses.items()}
dist.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
worst = {}
for name, loss in losses.items():
    total = gradients(loss, mine, True)
    dist.all_reduce(total)
    worst[name] = float((total / world - reference[name]).abs().max())
if rank == 0:
    print(json.dumps(worst))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_averaged_gradients_equal_one_process(tmp_path, world):
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
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1].decode()
    worst = json.loads(outputs[0][0])
    assert len(worst) == 6
    assert all(error < 1e-10 for error in worst.values()), worst
