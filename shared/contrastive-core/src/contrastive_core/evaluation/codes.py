"""Binary codes as packed bits."""

import numpy as np
from jaxtyping import Shaped, UInt8, UInt64
from torch import Tensor


def pack_codes(codes: Shaped[np.ndarray, "n bits"] | Shaped[Tensor, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Pack codes to one bit a dimension: 1 where the value is positive (or true), padded with 0 to whole bytes.

    Args:
        codes: Signs, zeros and ones, or real values to be cut at 0.

    Raises:
        ValueError: Not a matrix.

    Example:
        >>> pack_codes(np.array([[1, -1, -1, -1, -1, -1, -1, 1, 1]]))
        array([[129, 128]], dtype=uint8)
    """
    values = codes.detach().cpu().float().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
    if values.ndim != 2:
        raise ValueError(f"codes are [n bits], got {values.shape}")
    return np.packbits(values > 0, axis=1)


def hamming_distances(a: UInt8[np.ndarray, "n w"], b: UInt8[np.ndarray, "m w"]) -> Shaped[np.ndarray, "n m"]:
    """Number of bits in which packed codes differ; uint8 up to 255 bits, else uint16.

    Args:
        a: Packed codes.
        b: Packed codes of the same width.

    Example:
        >>> hamming_distances(np.array([[0]], dtype=np.uint8), np.array([[3], [255]], dtype=np.uint8))
        array([[2, 8]], dtype=uint8)
    """
    columns = words(b)
    return np.stack([distances_to(row, columns) for row in words(a).T])


def words(codes: UInt8[np.ndarray, "n w"]) -> UInt64[np.ndarray, "v n"]:
    """Packed codes in words of 64 bits, one row a word, padded with 0."""
    n, width = codes.shape
    padded = np.zeros((n, -(-width // 8) * 8), dtype=np.uint8)
    padded[:, :width] = codes
    return np.ascontiguousarray(padded.view(np.uint64).T)


def distances_to(query: UInt64[np.ndarray, " v"], gallery: UInt64[np.ndarray, "v n"]) -> Shaped[np.ndarray, " n"]:
    """Hamming distances of one code to all, both in words; XOR and the processor's count of set bits."""
    out = np.bitwise_count(gallery[0] ^ query[0])
    if len(gallery) > 3:  # beyond 255 bits
        out = out.astype(np.uint16)
    for word, row in zip(query[1:], gallery[1:], strict=True):
        out += np.bitwise_count(row ^ word)
    return out
