"""Frozen embeddings of many series, with the test-time strategies of MantisV2 (arXiv 2602.17868)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from jaxtyping import Float
from torch import Tensor

from cl_signals.mantis.model import Mantis, Token

Precision = Literal["float32", "bf16"]


def resize(x: Float[Tensor, "n c t"], length: int) -> Float[Tensor, "n c length"]:
    """Linear interpolation at sample centres (``align_corners=False``)."""
    return x if x.shape[-1] == length else F.interpolate(x, size=length, mode="linear", align_corners=False)


def embed(
    model: Mantis,
    x: Float[np.ndarray, "n c t"],
    *,
    layer: int = -1,
    token: Token = "combined",
    sizes: Sequence[int] = (512,),
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = False,
) -> Float[np.ndarray, "n c h"]:
    """Embed every channel of every series with the frozen encoder.

    Args:
        model: The encoder; put into eval mode.
        x: Raw values, finite.
        layer: Layer read out, -1 for the last; an intermediate layer is often the best.
        token: Token read out.
        sizes: Lengths the series are resized to; the embeddings of several are concatenated (self-ensembling).
        batch_size: Channels encoded at once; bounds the memory.
        precision: ``bf16`` runs the transformer (not the token generator) in bfloat16.
        progress: Show a progress bar.

    Returns:
        ``float32 [n c h*len(sizes)]``.

    Raises:
        InputError: Not a 3-D array of finite numbers, or a length the encoder does not take.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 3 or 0 in x.shape:
        raise InputError("series come as (series, channels, time), none of them empty", why=f"got shape {x.shape}")
    if not np.isfinite(x).all():
        raise InputError(
            "the series hold NaN or infinite values",
            why=f"{int((~np.isfinite(x)).sum())} of {x.size} values",
            remedy="read files through cl_signals.mantis.read_series, which fills gaps, or fill them first",
        )
    if not sizes:
        raise InputError("at least one size is needed", where="--sizes")
    for size in sizes:
        model.check_length(size)
    model.layer_index(layer)
    model.eval()
    device = next(model.parameters()).device
    flat = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, 1, x.shape[-1])))
    width = model.embedding_dim(token)
    out = np.empty((len(flat), width * len(sizes)), dtype=np.float32)
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for start in _starts(len(flat), batch_size, progress):
            part = flat[start : start + batch_size].to(device)
            for index, size in enumerate(sizes):
                z = model(resize(part, size), layer=layer, token=token)
                out[start : start + batch_size, index * width : (index + 1) * width] = z.float().cpu().numpy()
    return out.reshape(len(x), x.shape[1], -1)


def _starts(count: int, batch_size: int, progress: bool) -> Sequence[int]:
    starts = range(0, count, batch_size)
    if not progress:
        return starts
    from rich.progress import track

    return track(starts, description="embedding")  # type: ignore[return-value]
