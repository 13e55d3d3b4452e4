"""Matrix products of tiles, by the faster of the libraries torch was built with."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

TILE = 1024
"""Side of a square tile: 4 MiB of float32, which stays in the cache of a core while it is worked on."""

_SMALL = 2**24
"""Multiplications of a product below which a call of oneDNN costs more than it saves."""


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T``."""
    return _linear(a, b) if _by_onednn(a, b.shape[0]) else a @ b.T


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows``."""
    return _linear(weights, rows.T) if _by_onednn(weights, rows.shape[1]) else weights @ rows


def transposed_weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights.T @ rows``."""
    if _by_onednn(weights, rows.shape[1]):
        # As (rows.T @ weights).T: oneDNN takes a transposed weight as it is, but copies a transposed input.
        return _linear(rows.T.contiguous(), weights.T).T
    return weights.T @ rows


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return _onednn()(x, weight, None, "none", [], "")


def _by_onednn(x: Tensor, columns: int) -> bool:
    return x.numel() * columns >= _SMALL and x.dtype == torch.float32 and x.device.type == "cpu" and _onednn_is_faster()


@functools.cache
def _onednn() -> Callable[..., Tensor]:
    return torch.ops.mkldnn._linear_pointwise.default


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether float32 products run wider in oneDNN than in MKL, which torch prefers.

    MKL keeps its 512-bit code for Intel's processors; on AMD's with AVX-512 oneDNN reaches about twice its rate. The
    rule looks at the processor, not at a clock, so that a run repeats bit for bit.
    """
    information = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and information.exists()
        and "AuthenticAMD" in information.read_text()[:1000]
    )
