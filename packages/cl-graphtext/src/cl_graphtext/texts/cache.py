"""Embeddings of texts by their content: what was encoded once is never encoded again."""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, reading, write_json
from jaxtyping import Float
from torch import Tensor

from cl_graphtext.texts.encoders import TextEncoder

_SHARD = 2048
"""Texts encoded between two writes: what a killed run loses at most."""

_WIDEST = 1 << 16
"""Numbers a text's embedding has at most."""


class TextCache:
    """Embeddings on disk, by the SHA-256 of the text, one folder an encoder.

    What was encoded once is never encoded again, whatever it comes from. Embeddings are written every 2,048 texts, so a
    killed run loses little, and several processes may share a folder.

    Args:
        folder: Folder of all encoders; in memory alone if absent.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._rows: dict[str, dict[bytes, np.ndarray]] = {}
        self.encoded = 0

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embeddings of texts, from the cache where it has them; those of empty texts are zero.

        Raises:
            InputError: The cache holds embeddings of another width under the encoder's name, or is damaged.
        """
        known = self._open(encoder)
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if text and key not in known}
        # Texts of a like length together: the encoder pads less.
        order = sorted(missing, key=lambda key: len(missing[key]))
        for start in range(0, len(order), _SHARD):
            part = order[start : start + _SHARD]
            rows = encoder.encode([missing[key] for key in part])
            self.encoded += len(part)
            known.update(zip(part, rows, strict=True))
            self._write(encoder, part, rows)
        out = np.zeros((len(texts), encoder.dim), np.float32)
        for place, (key, text) in enumerate(zip(keys, texts, strict=True)):
            if text:
                out[place] = known[key]
        return torch.from_numpy(out)

    def _home(self, encoder: TextEncoder) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / hashlib.sha256(encoder.identity.encode()).hexdigest()[:16]

    def _open(self, encoder: TextEncoder) -> dict[bytes, np.ndarray]:
        if encoder.identity in self._rows:
            return self._rows[encoder.identity]
        home, known = self._home(encoder), dict[bytes, np.ndarray]()
        if home is not None and (home / "encoder.json").is_file():
            facts = read_json(home / "encoder.json")
            width = facts.get("dim") if isinstance(facts, dict) else None
            if width != encoder.dim:
                raise InputError(
                    "the cache holds embeddings of another width",
                    where=home,
                    why=f"they have {width} numbers, those of {encoder.identity} {encoder.dim}",
                    remedy="name another --cache folder, or remove this one",
                )
            for shard in sorted(home.glob("*.npz")):
                known.update(_read_shard(shard, encoder.dim))
        self._rows[encoder.identity] = known
        return known

    def _write(self, encoder: TextEncoder, keys: Sequence[bytes], rows: Float[np.ndarray, "n d"]) -> None:
        home = self._home(encoder)
        if home is None:
            return
        if not (home / "encoder.json").is_file():
            write_json(home / "encoder.json", {"encoder": encoder.identity, "dim": encoder.dim})
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        with atomic_write(home / f"{name}.npz") as temporary:
            np.savez(temporary, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), rows=rows)


def _read_shard(path: Path, dim: int) -> Iterator[tuple[bytes, np.ndarray]]:
    with reading(path, "the text cache is damaged", "remove that file"):
        with np.load(path, allow_pickle=False) as shard:
            keys, rows = shard["keys"], shard["rows"]
        if rows.ndim != 2 or rows.shape[1] != dim or len(keys) != len(rows):
            raise ValueError(f"rows of shape {rows.shape}, expected a width of {dim}")
    return zip((key.tobytes() for key in keys), rows, strict=True)


def read_features(path: Path, count: int) -> Float[Tensor, "n d"]:
    """Embeddings computed elsewhere, one row an item in the order of the items.

    Args:
        path: ``.npy``, or ``.npz`` with ``x``.
        count: Items.

    Raises:
        InputError: The file cannot be read, or its rows are not those of the items.
    """
    with reading(path, "the features cannot be read", "give .npy, or .npz with x"):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > (1 << 20) + count * _WIDEST * 8:
                raise ValueError(f"it unpacks to {size} bytes, for {count} items")
            with np.load(path, allow_pickle=False) as arrays:
                rows = arrays["x"]
        else:  # mapped, so that a header that claims more than there is fails at once
            rows = np.load(path, allow_pickle=False, mmap_mode="r")
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
        raise InputError(
            "the features do not fit the graph",
            where=path,
            why=f"shape {rows.shape} of {rows.dtype}, {count} rows are expected; all values must be finite numbers",
        )
    return torch.from_numpy(rows.astype(np.float32))
