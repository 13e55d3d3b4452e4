"""Speed of the code index at a million codes of 64 bits, beside float search, faiss and LanceDB's own search."""

import dataclasses
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import lancedb
import numpy as np
import torch
import torch.nn.functional as F
from contrastive_core.evaluation import pack_codes
from contrastive_core.index import CodeIndex, CodeModel, Items, build_index, open_index
from contrastive_core.index.embedded import TABLE
from contrastive_core.nn import HashHead
from lancedb.index import IvfFlat

from cl_bench.results import Speed, race

SIZE, BITS, DIM, CENTRES, FLIPPED, K = 1_000_000, 64, 512, 2000, 0.15, 10
QUERIES, FEW = 200, 20
LISTS = 1024
MODEL = CodeModel("a million codes", "bench", BITS)


def speed(rounds: int) -> list[Speed]:
    """The embedded index against what else could hold and search the same codes.

    Codes are 2,000 random centres with 15 % of their bits flipped, so that approximate searches have clusters to find,
    as codes of real collections do. Recall@10 counts hits no farther than the true tenth.

    Args:
        rounds: Timed rounds of each contestant; at most two where a million rows are written.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    codes, queries = _clustered(SIZE, QUERIES)
    items = Items([f"images/{number:07d}.jpg" for number in range(SIZE)], codes, "image")
    folder = Path(tempfile.mkdtemp(prefix="cl-bench-"))
    try:
        return _writing(folder, items, min(rounds, 2)) + _searching(folder, codes, queries, rounds)
    finally:
        shutil.rmtree(folder)


def _writing(folder: Path, items: Items, rounds: int) -> list[Speed]:
    """Building, reopening and changing; leaves both indexes in the folder."""
    ours, theirs = folder / "index", folder / "faiss.bin"

    def build_faiss() -> None:
        flat = faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(BITS))
        flat.add_with_ids(items.codes, np.arange(SIZE))
        _write(flat, theirs)

    building = race(
        f"code index: build, {SIZE:,} codes x {BITS} bit",
        lambda: build_index(ours, MODEL, items, overwrite=True),
        build_faiss,
        peer="faiss flat and a file",
        rounds=rounds,
        notes="",
    )
    gc.collect()
    with open_index(ours) as index:
        # A replaced version stays for a minute, and faiss keeps numbers for ids.
        sizes = f"{_newest(ours) / 2**20:.1f} against {theirs.stat().st_size / 2**20:.1f} MiB on disk, ours with ids"
        building = dataclasses.replace(building, notes=sizes)
        reopening = race(
            f"code index: reopen and answer one query, {SIZE:,} codes",
            lambda: open_index(ours).search(items.codes[:1], k=K),
            lambda: faiss.read_index_binary(str(theirs)).search(items.codes[:1], K),
            peer="faiss flat from a file",
            rounds=rounds,
            notes="ours sums up every row to find damage",
        )
        flat = faiss.read_index_binary(str(theirs))
        extra = [f"new/{number}" for number in range(1000)]
        numbers = np.arange(SIZE, SIZE + len(extra))

        def change() -> None:
            index.add(Items(extra, items.codes[: len(extra)], "image"))
            index.delete(extra)

        def change_faiss() -> None:
            flat.add_with_ids(items.codes[: len(extra)], numbers)
            _write(flat, theirs)
            flat.remove_ids(numbers)
            _write(flat, theirs)

        changing = race(
            f"code index: add 1,000, delete 1,000, both durable, {SIZE:,} codes",
            change,
            change_faiss,
            peer="faiss flat and its file written anew",
            rounds=rounds,
            notes="ours compares the new version with the one in memory each time",
        )
    return [building, reopening, changing]


def _searching(folder: Path, codes: np.ndarray, queries: np.ndarray, rounds: int) -> list[Speed]:
    index = open_index(folder / "index")
    exact = index.search(queries, k=K)
    tenth = np.array([hits[-1].distance for hits in exact])

    def ours() -> object:
        return index.search(queries, k=K)

    def against(peer: str, search: Callable[[], np.ndarray], notes: str = "", count: int = QUERIES) -> Speed:
        """Race against a search that returns the distances of some of the queries."""
        found = search()
        recall = float((found <= tenth[:count, None]).mean())
        measured = race(
            f"code index: top {K} of {QUERIES} queries, {SIZE:,} codes x {BITS} bit",
            ours,
            search,
            peer=peer,
            rounds=rounds,
            notes="",
        )
        scaled = [seconds * QUERIES / count for seconds in measured.theirs]
        per_second = (
            f"{QUERIES / float(np.median(measured.ours)):,.0f} against "
            f"{QUERIES / float(np.median(scaled)):,.0f} queries a second, recall@{K} 1.000 against {recall:.3f}"
        )
        return dataclasses.replace(measured, theirs=scaled, notes=per_second + notes)

    flat = faiss.read_index_binary(str(folder / "faiss.bin"))
    results = [against("faiss flat", lambda: flat.search(queries, K)[0])]

    inverted = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, LISTS)
    start = time.perf_counter()
    inverted.train(codes[: 50 * LISTS])
    inverted.add(codes)
    built = time.perf_counter() - start
    for probes in (1, 8):
        inverted.nprobe = probes
        results.append(
            against(
                f"faiss IVF, {probes} of {LISTS} lists",
                lambda: inverted.search(queries, K)[0],
                f"; its lists took {built:.0f} s",
            )
        )
    # In a copy: its index would be dead weight in ours.
    shutil.copytree(folder / "index", folder / "lance")
    table = lancedb.connect(folder / "lance").open_table(TABLE)
    results.append(against("LanceDB's own search", lambda: _lance(table, queries[:FEW]), count=FEW))
    start = time.perf_counter()
    table.create_index(
        "code",
        config=IvfFlat(distance_type="hamming", num_partitions=LISTS),
        wait_timeout=timedelta(minutes=10),
    )
    built = time.perf_counter() - start
    results += [
        against(
            f"LanceDB IVF, {probes} of {LISTS} lists",
            partial(_lance, table, queries, probes),
            f"; its lists took {built:.0f} s",
        )
        for probes in (8, 128)
    ]
    return [*results, *_floats(index, queries, rounds)]


def _floats(index: CodeIndex, queries: np.ndarray, rounds: int) -> list[Speed]:
    """From the encoder's features to the hits, by codes and by the features themselves."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.empty(SIZE, DIM)
    for part in gallery.split(100_000):
        part.normal_(generator=generator)
        part /= part.norm(dim=1, keepdim=True)
    asked = F.normalize(torch.randn(len(queries), DIM, generator=generator), dim=1)
    head = HashHead(DIM, BITS).eval()

    @torch.inference_mode()
    def coded() -> object:
        return index.search(pack_codes(head.codes(asked)), k=K)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        """Chunked product and top k."""
        best, places = torch.full((len(asked), K), -2.0), torch.zeros(len(asked), K, dtype=torch.long)
        for start in range(0, SIZE, 50_000):
            value, place = (asked @ gallery[start : start + 50_000].T).topk(K, dim=1)
            best, chosen = torch.cat([best, value], 1).topk(K, dim=1)
            places = torch.cat([places, place + start], 1).gather(1, chosen)
        return best, places

    measured = race(
        f"code index: encode {QUERIES} features and search, {SIZE:,} codes x {BITS} bit",
        coded,
        plain,
        peer=f"brute-force float search, {DIM} x float32",
        rounds=rounds,
        notes="",
    )
    notes = (
        f"{QUERIES / float(np.median(measured.ours)):,.0f} against "
        f"{QUERIES / float(np.median(measured.theirs)):,.0f} queries a second; "
        f"{SIZE * BITS // 8 / 2**20:.1f} MiB of codes against {SIZE * DIM * 4 / 2**20:,.0f} MiB of features"
    )
    return [dataclasses.replace(measured, notes=notes)]


def _clustered(size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (CENTRES, BITS), dtype=np.uint8)
    bits = centres[draw.integers(0, CENTRES, size + queries)]
    for start in range(0, len(bits), 100_000):
        bits[start : start + 100_000] ^= draw.random((len(bits[start : start + 100_000]), BITS)) < FLIPPED
    codes = np.packbits(bits, axis=1)
    return codes[:size], codes[size:]


def _lance(table: Any, queries: np.ndarray, probes: int | None = None) -> np.ndarray:
    """Distances by LanceDB's search, a query at a time: it takes no batch of uint8 vectors."""
    found = []
    for query in queries:
        search = table.search(query, vector_column_name="code").distance_type("hamming").select(["id", "_distance"])
        search = search.limit(K) if probes is None else search.limit(K).nprobes(probes)
        found.append(search.to_arrow()["_distance"].to_numpy()[:K])
    return np.stack(found)


def _write(index: Any, path: Path) -> None:
    """Faiss's file, whole or as before."""
    faiss.write_index_binary(index, str(path.with_suffix(".tmp")))
    path.with_suffix(".tmp").replace(path)


def _newest(folder: Path) -> int:
    """Bytes of the largest data file."""
    return max(path.stat().st_size for path in (folder / f"{TABLE}.lance" / "data").iterdir())
