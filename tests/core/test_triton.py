"""The kernels for GPUs, run on the CPU by Triton's interpreter, against the streamed tiles."""

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from contrastive_core import losses as L
from contrastive_core.losses import fused, similarity

torch.set_num_threads(1)
fused._PANEL = 2**13  # several panels

def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).requires_grad_()

t = torch.tensor(0.2, requires_grad=True)
cold = torch.tensor(0.01, requires_grad=True)
for n, d in ((150, 40), (70, 70)):
    a, b, queue = rows(n, d, 0), rows(n, d, 1), rows(90, d, 2).detach()
    ids, labels = torch.arange(n) // 2, torch.arange(n) % 7
    split = {"tile": 64}  # more than one tile
    calls = {
        "info_nce": lambda p: L.info_nce(a, b, temperature=t, precision=p, **split),
        "info_nce ids": lambda p: L.info_nce(a, b, temperature=t, ids=ids, precision=p, **split),
        "info_nce queue": lambda p: L.info_nce(
            a, b, temperature=t, queue=queue, ids=ids, queue_ids=torch.arange(90), precision=p, **split
        ),
        "clip_loss": lambda p: L.clip_loss(a, b, logit_scale=1 / t, ids=ids, precision=p, **split),
        "clip_loss cold": lambda p: L.clip_loss(a, b, logit_scale=1 / cold, precision=p, **split),
        "nt_xent": lambda p: L.nt_xent(a, b, temperature=t, precision=p, **split),
        "nt_xent ids": lambda p: L.nt_xent(a, b, temperature=t, ids=ids, precision=p, **split),
        "nt_xent one item": lambda p: L.nt_xent(a, b, temperature=t, ids=ids * 0, precision=p, **split),
        "sup_con": lambda p: L.sup_con(a + b, labels, temperature=t, precision=p, **split),
        "sup_con in": lambda p: L.sup_con(a + b, labels, temperature=t, positives="in", precision=p, **split),
        "pair_logsumexp": lambda p: L.pair_logsumexp(a, queue, 1 / t, precision=p, unit_rows=False, **split)[0].mean(),
    }
    for name, call in calls.items():
        results = {}
        for precision, chip in (("exact", False), ("exact", True), ("bf16", True)):
            similarity._on_chip = lambda x, chip=chip: chip
            value = call(precision)
            grads = torch.autograd.grad(value, (a, b, t, cold), allow_unused=True)
            results[precision, chip] = [value] + [torch.zeros(1) if g is None else g for g in grads]
        expected = results["exact", False]
        try:
            torch.testing.assert_close(results["exact", True], expected, rtol=2e-5, atol=2e-6)
        except AssertionError as error:
            raise SystemExit(f"{name} {n} x {d}: {error}")
        for coarse, exact in zip(results["bf16", True][:3], expected):  # value and gradients of both views
            if (coarse - exact).norm() > 0.02 * exact.norm() + 1e-6:
                raise SystemExit(f"{name} in bf16 {n} x {d}: off by {(coarse - exact).norm()} of {exact.norm()}")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch comes without Triton here")
def test_the_kernels_equal_the_tiles():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
