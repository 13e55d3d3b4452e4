"""CLIP's loss on one GPU, forward and backward, as a Markdown table: ``python -m cl_bench.gpu_table``.

Ours against the dense formula, torch.compile of it, open_clip, and Inf-CL (Cheng et al., 2024, "Breaking the memory
barrier"), written here from its equations in plain torch: row blocks whose log-sum-exp is accumulated
over column blocks, both recomputed in backward. Under ten minutes; a contestant that runs out of memory is said to.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contrastive_core.losses import clip_loss
from torch import Tensor

ROWS = (4096, 16384, 65536)
WIDTHS = (256, 768)
PRECISIONS = ("float32", "TF32", "bf16")

_SCALE = 1 / 0.07
_BLOCK = 4096
_ROUNDS = 5
_BUDGET = 540.0
"""Seconds after which no further cell is begun."""


def main() -> int:
    """Print the table; exit code 2 without a GPU."""
    if not torch.cuda.is_available():
        print("gpu_table measures a GPU and torch sees none: run it where torch.cuda.is_available()", file=sys.stderr)
        return 2
    start = time.perf_counter()
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, CUDA", end=" ")
    print(f"{torch.version.cuda}; forward and backward, median of {_ROUNDS}; peak memory beyond the inputs\n")
    print("| rows x width | precision | loss | ms | peak MiB | value |")
    print("|---|---|---|---|---|---|")
    for width in WIDTHS:
        for rows in ROWS:
            for precision in PRECISIONS:
                for name, loss in _contestants().items():
                    left = _BUDGET - (time.perf_counter() - start)
                    cell = "out of time | | " if left < 0 else _measure(loss, rows, width, precision)
                    print(f"| {rows:,} x {width} | {precision} | {name} | {cell} |", flush=True)
    return 0


def _contestants() -> dict[str, Callable[[Tensor, Tensor, str], Tensor]]:
    compiled = torch.compile(_dense)
    contestants = {
        "ours": lambda a, b, precision: clip_loss(
            a, b, logit_scale=_SCALE, precision="bf16" if precision == "bf16" else "exact"
        ),
        "dense formula": lambda a, b, precision: _dense(*_cast(a, b, precision)),
        "torch.compile of it": lambda a, b, precision: compiled(*_cast(a, b, precision)),
        "Inf-CL, its equations": lambda a, b, precision: _InfCL.apply(*_cast(a, b, precision), _SCALE),
    }
    try:
        from open_clip.loss import ClipLoss
    except ImportError:
        return contestants
    open_clip = ClipLoss()
    contestants["open_clip"] = lambda a, b, precision: open_clip(*_cast(a, b, precision), _SCALE)
    return contestants


def _measure(loss: Callable[[Tensor, Tensor, str], Tensor], rows: int, width: int, precision: str) -> str:
    """Milliseconds, MiB and the loss; or why there are none."""
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    generator = torch.Generator(device="cuda").manual_seed(0)
    a = torch.randn(rows, width, device="cuda", generator=generator)
    b = (a + 2 * torch.randn(rows, width, device="cuda", generator=generator)).requires_grad_()
    a.requires_grad_()

    def step() -> Tensor:
        value = loss(a, b, precision)
        torch.autograd.grad(value, (a, b))
        return value.detach()

    try:
        step()  # compiles
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = float(step())
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        return f"{statistics.median(_milliseconds(step) for _ in range(_ROUNDS)):.2f} | {peak:.0f} | {value:.5f}"
    except torch.OutOfMemoryError:
        return "out of memory | | "
    except Exception as error:  # one contestant that cannot run must not end the table
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]} | | "
    finally:
        torch.cuda.empty_cache()


def _milliseconds(step: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _cast(a: Tensor, b: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Unit rows in the dtype of the products."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return (a.bfloat16(), b.bfloat16()) if precision == "bf16" else (a, b)


def _dense(a: Tensor, b: Tensor) -> Tensor:
    logits = (a @ b.T).float() * _SCALE
    index = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2


class _InfCL(torch.autograd.Function):
    """Both directions, block by block of rows and columns, recomputed in backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows, columns = _blockwise(a, b, scale), _blockwise(b, a, scale)
        ctx.save_for_backward(a, b, rows, columns)
        ctx.scale = scale
        return ((rows + columns) / 2 - (a.float() * b.float()).sum(1) * scale).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b, rows, columns = ctx.saved_tensors
        weight = grad * ctx.scale / len(a)
        grad_a, grad_b = -b.float(), -a.float()
        for i in range(0, len(a), _BLOCK):
            for j in range(0, len(b), _BLOCK):
                s = (a[i : i + _BLOCK] @ b[j : j + _BLOCK].T).float() * ctx.scale
                w = (s - rows[i : i + _BLOCK, None]).exp() + (s - columns[None, j : j + _BLOCK]).exp()
                w = (w / 2).to(a.dtype)
                grad_a[i : i + _BLOCK] += w @ b[j : j + _BLOCK]
                grad_b[j : j + _BLOCK] += w.T @ a[i : i + _BLOCK]
        return (grad_a * weight).to(a.dtype), (grad_b * weight).to(b.dtype), None


def _blockwise(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Log-sum-exp of rows, accumulated over column blocks: ``l <- l + log(1 + exp(l_block - l))``."""
    blocks = []
    for rows in a.split(_BLOCK):
        lse = torch.full((len(rows),), float("-inf"), device=a.device)
        for columns in b.split(_BLOCK):
            lse = torch.logaddexp(lse, ((rows @ columns.T).float() * scale).logsumexp(1))
        blocks.append(lse)
    return torch.cat(blocks)


if __name__ == "__main__":
    sys.exit(main())
