"""Corpora on disk: Arrow, npz or npy, beside a manifest that says how to make them again."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.arrays import load_npy, load_npz
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, reading, refuse_existing, write_json
from jaxtyping import Float

from cl_signals.mantis.synthetic.generator import CauKerSettings, batches_of_series

_BLOCK = 1024


def write_corpus(
    out: Path | str,
    count: int,
    *,
    settings: CauKerSettings,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Draw a corpus straight to disk.

    Args:
        out: ``.arrow`` (streamed, any size), ``.npz`` or ``.npy``. The manifest goes beside it as
            ``<name>.manifest.json``.
        count: Number of series.
        settings: How they are drawn.
        seed: Seed.
        workers: Processes.
        overwrite: Replace an existing file.
        progress: Show a progress bar.

    Returns:
        The manifest.

    Raises:
        InputError: The file exists, its ending is unknown, or it cannot be written.
    """
    out = Path(out)
    if out.suffix not in (".arrow", ".npz", ".npy"):
        raise InputError("unknown corpus format", where=out, remedy="end the name in .arrow, .npz or .npy")
    refuse_existing(out, overwrite)
    digest, dropped = hashlib.sha256(), 0
    blocks = batches_of_series(settings, count, seed=seed, workers=workers)
    with atomic_write(out) as temporary, _bar(count, progress) as advance:
        writer = _Arrow(temporary) if out.suffix == ".arrow" else _Numpy(temporary, out.suffix)
        with writer:
            for series, lost in blocks:
                dropped += lost
                digest.update(series.tobytes())
                writer.add(series)
                advance(len(series))
    manifest = {
        "series": count,
        "length": settings.length,
        "seed": seed,
        "dropped": dropped,
        "sha256_of_values": digest.hexdigest(),
        "settings": dataclasses.asdict(settings),
    }
    write_json(out.with_name(out.stem + ".manifest.json"), manifest)
    return manifest


def read_corpus(path: Path | str) -> Float[np.ndarray, "n l"]:
    """Read a corpus of univariate series of one length.

    Args:
        path: ``.arrow`` or ``.parquet`` with a column ``target`` or ``data``, ``.npz`` with an array ``series`` (or a
            single one), or ``.npy``.

    Raises:
        InputError: The file is missing, truncated, of another layout, or holds NaN or series of several lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("the corpus is missing", where=path, remedy="check the path, or draw one with `synth`")
    with reading(path, "the corpus cannot be read", "draw it again, or restore it from a copy"):
        series = _read_numpy(path) if path.suffix in (".npz", ".npy") else _read_arrow(path)
    if series.ndim != 2 or not series.size:
        raise InputError("a corpus is an array of (series, time)", where=path, why=f"got shape {series.shape}")
    if not np.isfinite(series).all():
        raise InputError("the corpus holds NaN or infinite values", where=path)
    return series


class _Numpy:
    def __init__(self, path: Path, suffix: str) -> None:
        self._path, self._suffix = path, suffix
        self._parts: list[np.ndarray] = []

    def __enter__(self) -> None:
        return None

    def add(self, series: np.ndarray) -> None:
        self._parts.append(series)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        values = np.concatenate(self._parts)
        with self._path.open("wb") as file:
            np.save(file, values) if self._suffix == ".npy" else np.savez_compressed(file, series=values)


class _Arrow:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._pa, self._path = pa, path
        self._waiting: list[np.ndarray] = []

    def __enter__(self) -> None:
        schema = self._pa.schema([("target", self._pa.list_(self._pa.float32()))])
        self._sink = self._pa.OSFile(str(self._path), "wb")
        self._writer = self._pa.ipc.new_file(self._sink, schema)

    def add(self, series: np.ndarray) -> None:
        self._waiting.append(series)
        if sum(map(len, self._waiting)) >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        values = np.concatenate(self._waiting)
        self._waiting = []
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        column = self._pa.ListArray.from_arrays(offsets, values.ravel())
        self._writer.write(self._pa.record_batch([column], names=["target"]))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._waiting:
            self._flush()
        self._writer.close()
        self._sink.close()


def _read_numpy(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return load_npy(path).astype(np.float32)
    arrays = load_npz(path)
    if "series" not in arrays and len(arrays) != 1:
        raise InputError("the corpus is not named", where=path, why=f"arrays: {', '.join(arrays)}; need series")
    return arrays["series" if "series" in arrays else next(iter(arrays))].astype(np.float32)


def _read_arrow(path: Path) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    name = next((name for name in ("target", "data") if name in table.column_names), None)
    if name is None:
        raise InputError(
            "the corpus lacks its column", where=path, why=f"columns: {', '.join(table.column_names)}; need target"
        )
    column = table.column(name).combine_chunks()
    lengths = np.unique(np.asarray(column.value_lengths()))
    if len(lengths) != 1:
        raise InputError(
            "the corpus holds series of several lengths",
            where=path,
            why=f"{lengths.min()} to {lengths.max()}",
            remedy="resize them to one length first",
        )
    return np.asarray(column.flatten(), dtype=np.float32).reshape(-1, int(lengths[0]))


class _bar:  # noqa: N801 - used like a function
    def __init__(self, total: int, show: bool) -> None:
        self._total, self._show = total, show

    def __enter__(self) -> Any:
        if not self._show:
            return lambda _: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._progress = Progress(
            "drawing series", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self._progress.start()
        task = self._progress.add_task("", total=self._total)
        return lambda count: self._progress.advance(task, count)

    def __exit__(self, *_: object) -> None:
        if self._show:
            self._progress.stop()
