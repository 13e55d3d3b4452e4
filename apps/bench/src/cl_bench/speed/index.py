"""Speed of the index at a million codes and a million float vectors, beside faiss and LanceDB's own search."""

import dataclasses
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
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
from contrastive_core.index import CodeModel, Items, VectorIndex, VectorModel, build_index, open_index
from contrastive_core.index.snapshot import TABLE
from contrastive_core.nn import HashHead
from lancedb.index import IvfFlat, IvfPq

from cl_bench.measures import Speed, race

SIZE, BITS, DIM, CENTRES, FLIPPED, K = 1_000_000, 64, 512, 2000, 0.15, 10
QUERIES, FEW = 200, 20
LISTS = 1024
MODEL = CodeModel("a million codes", "bench", BITS)
VECTORS, WIDTH, LATENT = 1_000_000, 384, 48


def speed(rounds: int) -> list[Speed]:
    """The embedded index against what else could hold and search the same codes.

    Codes are 2,000 random centres with 15 % of their bits flipped, so that approximate searches have clusters to find,
    as codes of real collections do. Float vectors lie near 2,000 centres in a space of 48 of their 384 dimensions.
    Recall@10 counts hits no farther than the true tenth.

    Args:
        rounds: Timed rounds of each contestant; at most two where a million rows are written.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    codes, queries = _clustered(SIZE, QUERIES)
    items = Items([f"images/{number:07d}.jpg" for number in range(SIZE)], codes, "image")
    folder = Path(tempfile.mkdtemp(prefix="cl-bench-"))
    try:
        results = _writing(folder, items, min(rounds, 2)) + _searching(folder, codes, queries, rounds)
        shutil.rmtree(folder)
        folder.mkdir()
        return results + _vectors(folder, rounds)
    finally:
        shutil.rmtree(folder)


def _writing(folder: Path, items: Items, rounds: int) -> list[Speed]:
    """Building, reopening and changing; leaves both indexes in the folder."""
    ours, theirs = folder / "index", folder / "faiss.bin"

    def build_faiss() -> None:
        flat = faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(BITS))
        flat.add_with_ids(items.vectors, np.arange(SIZE))
        _write(flat, theirs)

    building = race(
        f"index: build, {SIZE:,} codes x {BITS} bit",
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
            f"index: reopen and answer one query, {SIZE:,} codes",
            lambda: open_index(ours).search(items.vectors[:1], k=K),
            lambda: faiss.read_index_binary(str(theirs)).search(items.vectors[:1], K),
            peer="faiss flat from a file",
            rounds=rounds,
            notes="ours sums up every row to find damage",
        )
        flat = faiss.read_index_binary(str(theirs))
        extra = [f"new/{number}" for number in range(1000)]
        numbers = np.arange(SIZE, SIZE + len(extra))

        def change() -> None:
            index.add(Items(extra, items.vectors[: len(extra)], "image"))
            index.delete(extra)

        def change_faiss() -> None:
            flat.add_with_ids(items.vectors[: len(extra)], numbers)
            _write(flat, theirs)
            flat.remove_ids(numbers)
            _write(flat, theirs)

        changing = race(
            f"index: add 1,000, delete 1,000, both durable, {SIZE:,} codes",
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
            f"index: top {K} of {QUERIES} queries, {SIZE:,} codes x {BITS} bit",
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

    results.append(_approximate(index, flat, queries, tenth, rounds))
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
        "vector",
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


def _approximate(index: VectorIndex, flat: Any, queries: np.ndarray, tenth: np.ndarray, rounds: int) -> Speed:
    """Tables of substrings against faiss's scan."""
    start = time.perf_counter()
    made = index.optimise(recall=0.99)
    built = time.perf_counter() - start
    if made is None:
        raise RuntimeError("no approximate search of the codes reaches a recall of .99")
    near = index.search(queries, k=K, exact=False)
    recall = np.mean([[hit.distance <= far for hit in hits] for hits, far in zip(near, tenth, strict=True)])
    measured = race(
        f"index: top {K} of {QUERIES} queries, {SIZE:,} codes x {BITS} bit, approximate",
        lambda: index.search(queries, k=K, exact=False),
        lambda: flat.search(queries, K),
        peer="faiss flat",
        rounds=rounds,
        notes="",
    )
    notes = f"{_rates(measured)}; recall@{K} {recall:.3f}; {made.method}, measured in {built:.0f} s"
    return dataclasses.replace(measured, notes=notes)


def _rates(measured: Speed, count: int = QUERIES) -> str:
    ours, theirs = (count / float(np.median(each)) for each in (measured.ours, measured.theirs))
    return f"{ours:,.0f} against {theirs:,.0f} queries a second"


def _vectors(folder: Path, rounds: int) -> list[Speed]:
    """Float vectors, one query at a time, against faiss and LanceDB's own lists at its defaults."""
    gallery = _mixture(folder / "vectors.npy", VECTORS + QUERIES)
    queries, gallery = np.array(gallery[VECTORS:]), gallery[:VECTORS]
    names = [f"{row:07d}" for row in range(VECTORS)]
    start = time.perf_counter()
    index = build_index(folder / "index", VectorModel("bench", "bench", WIDTH), Items(names, gallery))
    built = time.perf_counter() - start
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(gallery)
    tenth = flat.search(queries, K)[0][:, -1] - 1e-5
    del flat

    def ours() -> np.ndarray:
        found = [index.search(query[None], k=K)[0] for query in queries]
        return np.array([[hit.score for hit in hits] for hits in found])

    own = float((ours() >= tenth[:, None]).mean())

    def against(peer: str, search: Callable[[], np.ndarray], seconds: float) -> Speed:
        recall = float((search() >= tenth[:, None]).mean())
        measured = race(
            f"index: top {K}, one query at a time, {VECTORS:,} x {WIDTH} floats",
            ours,
            search,
            peer=peer,
            rounds=rounds,
            notes="",
        )
        each = 1e3 * float(np.median(measured.ours)) / QUERIES
        notes = (
            f"{each:.1f} ms a query, {_rates(measured)}, recall@{K} {own:.3f} against {recall:.3f}; "
            f"built in {built:.0f} against {seconds:.0f} s"
        )
        return dataclasses.replace(measured, notes=notes)

    return [against(*peer) for peer in _peers(folder, gallery, queries)]


def _peers(
    folder: Path, gallery: np.ndarray, queries: np.ndarray
) -> Iterator[tuple[str, Callable[[], np.ndarray], float]]:
    """Name, search of all queries one at a time, and seconds of building; one peer in memory at a time."""
    graph = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, 64
    inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, LISTS, faiss.METRIC_INNER_PRODUCT)
    inverted.nprobe = 32
    for name, index in (("faiss HNSW32, ef 64", graph), (f"faiss IVF, 32 of {LISTS} lists", inverted)):
        start = time.perf_counter()
        index.train(gallery[: 50 * LISTS])
        index.add(gallery)
        built = time.perf_counter() - start
        yield name, partial(_one_at_a_time, index, queries), built
        index.reset()
    shutil.copytree(folder / "index", folder / "lance")
    table = lancedb.connect(folder / "lance").open_table(TABLE)
    start = time.perf_counter()
    table.create_index("vector", config=IvfPq(distance_type="dot"), wait_timeout=timedelta(hours=1))
    yield "LanceDB IVF-PQ as it comes", partial(_lance_floats, table, queries), time.perf_counter() - start


def _one_at_a_time(index: Any, queries: np.ndarray) -> np.ndarray:
    return np.concatenate([index.search(query[None], K)[0] for query in queries])


def _lance_floats(table: Any, queries: np.ndarray) -> np.ndarray:
    """Similarities of the rows that LanceDB's search returns, recomputed: its own are of compressed vectors."""
    rows = [
        table.search(query, vector_column_name="vector").distance_type("dot").limit(K).select(["vector", "_distance"])
        for query in queries
    ]
    vectors = [row.to_arrow()["vector"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH) for row in rows]
    return np.stack([each @ query for each, query in zip(vectors, queries, strict=True)])


def _mixture(path: Path, size: int) -> np.ndarray:
    """Unit vectors near centres in a subspace, mapped from a file."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((CENTRES, LATENT), dtype=np.float32)
    basis = draw.standard_normal((LATENT, WIDTH), dtype=np.float32) / np.float32(LATENT**0.5)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (size, WIDTH))
    for start in range(0, size, 50_000):
        part = rows[start : start + 50_000]
        latent = centres[draw.integers(0, CENTRES, len(part))]
        latent = latent + 0.5 * draw.standard_normal(latent.shape, dtype=np.float32)
        part[:] = latent @ basis + 0.05 * draw.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def _floats(index: VectorIndex, queries: np.ndarray, rounds: int) -> list[Speed]:
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
        f"index: encode {QUERIES} features and search, {SIZE:,} codes x {BITS} bit",
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
        search = table.search(query, vector_column_name="vector").distance_type("hamming").select(["id", "_distance"])
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
