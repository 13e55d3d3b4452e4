"""From features to packed codes, and what the bits are like."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from contrastive_core.evaluation import pack_codes
from contrastive_core.index.interface import Modality
from jaxtyping import Float, UInt8
from torch import Tensor

from cl_retrieval.hashing.heads import sign_codes
from cl_retrieval.pairs.features import PairFeatures

BLOCK = 65536


@runtime_checkable
class HashModel(Protocol):
    """What turns features into relaxed codes; the signs are the code."""

    @property
    def dim(self) -> int:
        """Width of the features."""
        ...

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    def relaxed(self, features: Float[Tensor, "n d"], modality: Modality) -> Float[Tensor, "n bits"]:
        """Relaxed codes of unit features of one modality."""
        ...


@runtime_checkable
class Hashes(Protocol):
    """Anything that is evaluated: it packs features of either modality into codes."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    def encode(self, features: Float[np.ndarray, "n d"], modality: Modality) -> UInt8[np.ndarray, "n bytes"]:
        """Packed codes of unit features."""
        ...


@torch.no_grad()
def binary_codes(
    model: HashModel, features: Float[np.ndarray, "n d"], modality: Modality, *, device: str = "cpu"
) -> UInt8[np.ndarray, "n bytes"]:
    """Packed codes, first bit highest, padded with zeros to whole bytes; computed in blocks.

    Args:
        model: Trained hash functions.
        features: Unit rows.
        modality: Which of the two functions to use.
        device: Where the model is.
    """
    blocks = []
    for start in range(0, len(features), BLOCK):
        rows = torch.from_numpy(np.ascontiguousarray(features[start : start + BLOCK], np.float32)).to(device)
        blocks.append(pack_codes(sign_codes(model.relaxed(rows, modality)).cpu()))
    return np.concatenate(blocks) if blocks else np.empty((0, -(-model.bits // 8)), np.uint8)


def both_codes(hashes: Hashes, features: PairFeatures) -> dict[Modality, UInt8[np.ndarray, "n bytes"]]:
    """Packed codes of the images and of the texts of pairs."""
    return {"image": hashes.encode(features.image, "image"), "text": hashes.encode(features.text, "text")}


def unpack_codes(packed: UInt8[np.ndarray, "n bytes"], bits: int) -> Float[np.ndarray, "n bits"]:
    """Codes of -1 and +1 from packed ones; the inverse of ``pack_codes``."""
    return np.unpackbits(packed, axis=1, count=bits).astype(np.float32) * 2 - 1


def bit_statistics(codes: Float[np.ndarray, "n bits"]) -> dict[str, float]:
    """What tells good codes from collapsed ones.

    Args:
        codes: Codes of -1 and +1.

    Returns:
        ``balance``: mean absolute mean of a bit (0 when every bit is on for half of the items); ``correlation``: mean
        absolute correlation of different bits; ``entropy``: mean entropy of a bit, at most 1; ``distinct``: share of
        different codes.
    """
    mean = codes.mean(0, dtype=np.float64)
    on = np.clip((mean + 1) / 2, 1e-12, 1 - 1e-12)
    correlation = bit_correlation(codes)
    off_diagonal = ~np.eye(codes.shape[1], dtype=bool)
    return {
        "balance": float(np.abs(mean).mean()),
        "correlation": float(np.abs(correlation[off_diagonal]).mean()) if codes.shape[1] > 1 else 0.0,
        "entropy": float(-(on * np.log2(on) + (1 - on) * np.log2(1 - on)).mean()),
        "distinct": len(np.unique(codes, axis=0)) / len(codes),
    }


def bit_correlation(codes: Float[np.ndarray, "n bits"]) -> Float[np.ndarray, "bits bits"]:
    """Correlations of bits; 0 for bits that never change, 1 on the diagonal."""
    centred = codes - codes.mean(0)
    deviation = np.sqrt((centred**2).mean(0))
    covariance = centred.T @ centred / len(codes)
    scale = np.outer(deviation, deviation)
    out = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)
    np.fill_diagonal(out, 1.0)
    return out
