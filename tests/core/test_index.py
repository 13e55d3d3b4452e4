"""The code index: both engines against brute force, what a change leaves behind, what is refused."""

import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
from contrastive_core import index as code_index
from contrastive_core.errors import InputError
from contrastive_core.evaluation import pack_codes
from contrastive_core.evaluation.codes import words
from contrastive_core.index import CodeModel, Hit, Items, build_index, embedded, open_index, scan, snapshot
from contrastive_core.index import folder as index_folder

try:
    import milvus_lite  # noqa: F401
    import pymilvus
except ImportError as error:
    NO_MILVUS = f"{error.name} is not installed (extra milvus)"
else:
    NO_MILVUS = ""

ENGINES = ["lancedb", pytest.param("milvus", marks=pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS))]


@pytest.fixture(scope="module")
def milvus_file(tmp_path_factory):
    return tmp_path_factory.mktemp("milvus") / "index.db"


@pytest.fixture(params=ENGINES)
def location(request, tmp_path):
    if request.param == "lancedb":
        return str(tmp_path / "index")
    # One embedded server serves the module; every test has an index of its own.
    name = "".join(each if each.isalnum() else "_" for each in request.node.name)
    return f"{request.getfixturevalue('milvus_file')}#{name}"


def model(bits, fingerprint="f" * 16, name=None):
    return CodeModel(name or f"gnah {bits} bit", fingerprint, bits)


def random_items(n, bits, seed=0, features=None, spread=None):
    """Items of both modalities, some under one id; codes near a few centres, so that ties are many."""
    draw = np.random.default_rng(seed)
    centres = draw.integers(0, 2, (spread or 4, bits))
    codes = centres[draw.integers(0, len(centres), n)] ^ (draw.random((n, bits)) < 0.1)
    names = [f"set {seed}/é{number // 2}" for number in draw.permutation(n)]
    kinds = [code_index.MODALITIES[count] for count in _occurrence(names)]
    return Items(
        names,
        pack_codes(codes),
        kinds,
        [{"file": name, "number": place} for place, name in enumerate(names)],
        None if features is None else draw.standard_normal((n, features)),
    )


def _occurrence(names):
    seen = {}
    for name in names:
        yield seen.setdefault(name, 0)
        seen[name] += 1


def brute_force(items, queries, k=None, radius=None, modality=None):
    """Unpack, count, sort by distance, id, modality."""
    stored, asked = np.unpackbits(items.vectors, axis=1), np.unpackbits(queries, axis=1)
    order = {"image": 0, "text": 1}
    answer = []
    for query in asked:
        rows = sorted(
            (int(distance), name, order[kind], place)
            for place, (name, kind, distance) in enumerate(zip(items.ids, items.modality, (stored != query).sum(1)))
            if (modality is None or kind == modality) and (radius is None or distance <= radius)
        )
        answer.append([Hit(name, items.modality[p], d, None, dict(items.payloads[p])) for d, name, _, p in rows[:k]])
    return answer


@pytest.mark.parametrize("bits", [7, 20, 64])
def test_search_is_brute_force_with_ties_by_id(location, bits):
    items, queries = random_items(400, bits), random_items(6, bits, seed=1).vectors
    with build_index(location, model(bits), items) as index:
        for options in (
            {"k": 1},
            {"k": 10},
            {"k": 250, "modality": "text"},
            {"k": 1000},
            {"k": None, "radius": bits // 3},
            {"k": 7, "radius": bits // 4, "modality": "image"},
            {"k": None, "radius": bits},
        ):
            assert index.search(queries, **options) == brute_force(items, queries, **options), options


@pytest.mark.parametrize("bits", [33, 64, 200, 300])
@pytest.mark.parametrize("size", [1, 4, 37, 200])
def test_the_scan_is_exact_across_its_blocks(bits, size, monkeypatch):
    monkeypatch.setattr(scan, "FIRST", 4)
    monkeypatch.setattr(scan, "BLOCK", 16)
    items, queries = random_items(size, bits), random_items(3, bits, seed=2).vectors
    distances = (np.unpackbits(items.vectors, axis=1)[None] != np.unpackbits(queries, axis=1)[:, None]).sum(2)
    among = np.arange(size) % 3 > 0
    for k, radius, mask in ((5, bits, None), (None, bits // 2, None), (3, bits // 3, among), (size + 1, 0, among)):
        found = scan.nearest(queries, words(items.vectors), k=k, radius=radius, among=mask)
        for (rows, got), distance in zip(found, distances):
            allowed = (distance <= radius) & (True if mask is None else mask)
            expected = [row for row in np.argsort(distance, kind="stable") if allowed[row]][:k]
            assert rows.tolist() == expected
            assert got.tolist() == distance[expected].tolist()


@pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS)
def test_ties_beyond_one_answer_of_milvus(milvus_file, monkeypatch):
    from contrastive_core.index import milvus

    items = random_items(300, 8, spread=1)
    queries = items.vectors[:4]
    with build_index(f"{milvus_file}#ties", model(8), items) as index:
        monkeypatch.setattr(milvus, "MOST", 40)
        monkeypatch.setattr(milvus, "SLACK", 2)
        for options in ({"k": 5}, {"k": 45}, {"k": 12, "modality": "text"}, {"k": None, "radius": 2}, {"k": 500}):
            assert index.search(queries, **options) == brute_force(items, queries, **options), options


def test_reranking_orders_the_nearest_by_cosine(location):
    items, queries = random_items(200, 32, features=12), random_items(5, 32, seed=3, features=12)
    with build_index(location, model(32), items) as index:
        found = index.search(queries.vectors, k=8, features=queries.features, rerank=40)
        everything = index.search(queries.vectors, k=None, radius=12, features=queries.features, rerank=40)
    half = (items.features / np.linalg.norm(items.features, axis=1, keepdims=True)).astype(np.float16).astype(float)
    asked = queries.features / np.linalg.norm(queries.features, axis=1, keepdims=True)
    place = {(name, kind): row for row, (name, kind) in enumerate(zip(items.ids, items.modality))}
    for hits, near, query in zip(found, brute_force(items, queries.vectors, k=40), asked):
        score = {hit: half[place[hit[:2]]] @ query for hit in map(_bare, near)}
        expected = sorted(score, key=lambda hit: -score[hit])[:8]
        assert list(map(_bare, hits)) == expected
        assert [hit.score for hit in hits] == pytest.approx([score[hit] for hit in expected], abs=1e-6)
    for hits, near in zip(everything, brute_force(items, queries.vectors, k=40, radius=12)):
        assert set(map(_bare, hits)) == set(map(_bare, near))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def _bare(hit):
    return hit.id, hit.modality, hit.distance


def test_engines_agree_on_everything_they_say(tmp_path, request):
    if NO_MILVUS:
        pytest.skip(NO_MILVUS)
    file = request.getfixturevalue("milvus_file")
    items, queries = random_items(150, 16, features=8), random_items(4, 16, seed=4, features=8)
    more = random_items(30, 16, seed=5, features=8)
    answers, infos = [], []
    for where in (tmp_path / "index", f"{file}#agree"):
        with build_index(where, model(16), items) as index:
            index.add(more)
            removed = index.delete([items.ids[3], more.ids[0]]), index.delete([items.ids[8]], modality="text")
            answers.append(
                [
                    removed,
                    index.search(queries.vectors, k=25),
                    index.search(queries.vectors, k=5, features=queries.features, rerank=30, modality="image"),
                ]
            )
            infos.append(dataclasses.replace(index.info(), location="", engine="", version=0, bytes=None))
    assert answers[0] == answers[1]
    assert infos[0] == infos[1]
    assert infos[0].size == 150 + 30 - sum(answers[0][0])


def test_changes_persist(location):
    items, more = random_items(60, 16), random_items(20, 16, seed=6)
    with build_index(location, model(16), items) as index:
        index.add(more)
        assert index.delete(more.ids[:1], modality=more.modality[0]) == 1
    with open_index(location, model(16)) as index:
        info = index.info()
        assert info.size == 79
        assert info.model == model(16)
        assert json.loads(json.dumps(info.to_dict()))["size"] == 79
        kept = range(1, 20)
        rest = Items(
            [*items.ids, *(more.ids[p] for p in kept)],
            np.concatenate([items.vectors, more.vectors[1:]]),
            [*items.modality, *(more.modality[p] for p in kept)],
            [*items.payloads, *(more.payloads[p] for p in kept)],
        )
        assert index.search(more.vectors, k=12) == brute_force(rest, more.vectors, k=12)
        index.add(Items(more.ids[:1], more.vectors[:1], more.modality[:1], more.payloads[:1]))  # deleted ids are free
        assert index.info().size == 80


def test_an_empty_index_answers_and_grows(location):
    empty = Items([], np.empty((0, 2), np.uint8), "image", features=np.empty((0, 4)))
    with build_index(location, model(16), empty) as index:
        assert index.info().items == {}
        assert index.info().features == 4
        query = np.zeros((2, 2), np.uint8)
        assert index.search(query) == [[], []]
        assert index.search(query, features=np.ones((2, 4)), rerank=10) == [[], []]
        assert index.search(query[:0]) == []
        index.add(empty)
        assert index.delete([]) == 0
        index.add(Items(["a"], query[:1], "text", features=np.ones((1, 4))))
        assert index.search(query[:1]) == [[Hit("a", "text", 0, None, {})]]
        index.delete(["a"])
        assert index.search(query) == [[], []]


def test_unusual_ids_are_kept(location):
    names = ["it's", 'say "x"', "100 %", "日本/猫.jpg", "a", "a/b", "..a", "-", "A", "x' OR key != '", "nu:ll", "é"]
    items = Items(names, np.zeros((len(names), 1), np.uint8), "image")
    with build_index(location, model(8), items) as index:
        assert [hit.id for hit in index.search(items.vectors[:1], k=50)[0]] == sorted(names)
        assert index.delete(["it's", "x' OR key != '"]) == 2
        assert index.info().size == len(names) - 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../up",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "C:x",
        " a",
        "a ",
        "a\nb",
        "a\0",
        "\ud800",
        "x" * 1025,
    ],
)
def test_ids_that_leave_their_folder_or_cannot_be_shown(name, tmp_path):
    items = Items(["fine", name], np.zeros((2, 1), np.uint8), "image")
    with pytest.raises(InputError, match="an id cannot be used"):
        build_index(tmp_path / "index", model(8), items)
    assert not (tmp_path / "index").exists()


def test_refusals_change_nothing(location):
    items = random_items(40, 12, features=4)
    code = items.vectors[:1]

    def one(name="new", codes=code, kind="image", payload=None, features=items.features[:1]):
        return Items([name], codes, kind, None if payload is None else [payload], features)

    with build_index(location, model(12), items) as index:
        before = index.info().size, index.search(items.vectors, k=3)
        refused = [
            (lambda: index.add(one(items.ids[0], kind=items.modality[0])), f"already.*{items.ids[0]}"),
            (lambda: index.add(Items(["b", "b"], items.vectors[:2], "text", None, items.features[:2])), "twice.*'b'"),
            (lambda: index.add(one(codes=np.zeros((1, 3), np.uint8))), "do not fit.*12 bits.*3"),
            (lambda: index.add(one(codes=np.full((1, 2), 255, np.uint8))), "beyond the 12"),
            (lambda: index.add(one(payload={"x": float("nan")})), "JSON"),
            (lambda: index.add(one(payload={"x": {1}})), "JSON"),
            (lambda: index.add(one(payload={"x": "é" * 40_000})), "too long"),
            (lambda: index.add(one(features=None)), "features of length 4.*no features"),
            (lambda: index.add(one(features=np.ones((1, 5)))), "length 4.*length 5"),
            (lambda: index.add(one(features=np.zeros((1, 4)))), "zero or not finite"),
            (lambda: index.add(one(features=np.full((1, 4), np.nan))), "zero or not finite"),
            (lambda: index.delete([items.ids[0], "absent"]), "not in the index.*absent"),
            (lambda: index.search(np.zeros((1, 3), np.uint8)), "do not fit"),
            (lambda: index.search(np.full((1, 2), 255, np.uint8)), "beyond the 12"),
            (lambda: index.search(code, k=0), "at least 1"),
            (lambda: index.search(code, k=None), "number of hits or a radius"),
            (lambda: index.search(code, radius=13), "code length"),
            (lambda: index.search(code, rerank=20), "re-ranking needs"),
            (lambda: index.search(code, features=items.features[:1]), "re-ranking needs"),
            (lambda: index.search(code, features=items.features[:1], rerank=5), "at least k"),
            (lambda: index.search(code, features=np.ones((1, 5)), rerank=10), r"\(1, 4\).*\(1, 5\)"),
            (lambda: build_index(location, model(12), items), "already"),
            (lambda: open_index(location, model(12, "other", "apkh")), "gnah 12 bit.*apkh"),
            (lambda: open_index(location, model(16)), "12 bits.*16 bits"),
        ]
        for action, message in refused:
            with pytest.raises(InputError, match=f"(?s){message}"):
                action()
        assert (index.info().size, index.search(items.vectors, k=3)) == before


@pytest.mark.unchecked
def test_codes_of_another_type_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"uint8.*int64"):
        build_index(tmp_path / "index", model(8), Items(["a"], np.zeros((1, 1), np.int64), "image"))
    with pytest.raises(InputError, match="one row an item"):
        build_index(tmp_path / "i", model(8), Items(["a"], np.zeros((1, 1), np.uint8), "image", None, np.ones((2, 3))))
    with pytest.raises(InputError, match="one payload"):
        build_index(tmp_path / "i", model(8), Items(["a"], np.zeros((1, 1), np.uint8), "image", []))
    with pytest.raises(InputError, match=r"short name(?s:.*)a sound"):
        build_index(tmp_path / "i", model(8), Items(["a"], np.zeros((1, 1), np.uint8), "a sound"))
    with pytest.raises(InputError, match="2 modalities for 1"):
        build_index(tmp_path / "i", model(8), Items(["a"], np.zeros((1, 1), np.uint8), ["image", "text"]))
    assert not list(tmp_path.iterdir())


def test_an_index_without_features_is_not_reranked(location):
    index = build_index(location, model(8), random_items(5, 8))
    with index, pytest.raises(InputError, match="keeps no features"):
        index.search(np.zeros((1, 1), np.uint8), features=np.ones((1, 2)), rerank=10)


def test_replacing_an_index(location):
    items = random_items(30, 8)
    build_index(location, model(8), items).close()
    with build_index(location, model(16, "other"), random_items(4, 16), overwrite=True) as index:
        assert index.info().size == 4
    with open_index(location) as index:
        assert index.info().model == model(16, "other")


def test_places_that_are_no_index(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.txt").write_text("x")
    items = random_items(4, 8)
    for where, message in ((tmp_path / "file", "a file of that name"), (tmp_path / "others", "other files")):
        with pytest.raises(InputError, match=message):
            build_index(where, model(8), items, overwrite=True)
    assert (tmp_path / "others" / "thesis.txt").read_text() == "x"
    for where in (tmp_path / "absent", tmp_path / "others", tmp_path / "absent.db"):
        with pytest.raises(InputError, match="no index"):
            open_index(where)
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(InputError, match="a name, a fingerprint, and bits"):
        build_index(tmp_path / "index", CodeModel("", "x", 8), items)


# What a change leaves behind.


@pytest.fixture
def folder(tmp_path):
    build_index(tmp_path / "index", model(32), random_items(100, 32, features=8)).close()
    return tmp_path / "index"


def data_file(folder):
    return max((folder / "items.lance" / "data").iterdir(), key=lambda path: path.stat().st_size)


def truncate(folder):
    os.truncate(data_file(folder), data_file(folder).stat().st_size // 2)


def remove(folder):
    data_file(folder).unlink()


def garble_manifests(folder):
    for path in (folder / "items.lance" / "_versions").glob("*.manifest"):
        path.write_bytes(b"garbage")


def flip_a_bit_of_a_code(folder):
    content = bytearray(data_file(folder).read_bytes())
    items = random_items(100, 32, features=8)
    first = min(range(100), key=lambda place: (items.ids[place], items.modality[place]))
    place = content.find(items.vectors[first].tobytes())
    assert place >= 0
    content[place] ^= 4
    data_file(folder).write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, remove, garble_manifests, flip_a_bit_of_a_code])
def test_damage_is_noticed_and_repaired_by_building_again(folder, harm):
    harm(folder)
    with pytest.raises(InputError, match="the index is damaged"):
        open_index(folder)
    with build_index(folder, model(32), random_items(10, 32), overwrite=True) as index:
        assert index.info().size == 10
    assert open_index(folder).info().size == 10


def test_damage_while_open(folder):
    index = open_index(folder)
    remove(folder)
    with pytest.raises(InputError, match="the index is damaged"):
        index.search(np.zeros((1, 4), np.uint8), features=np.ones((1, 8)), rerank=10)


@pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS)
def test_a_milvus_file_that_is_none(tmp_path):
    (tmp_path / "x.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(InputError, match="Milvus") as caught:
        open_index(tmp_path / "x.db")
    assert "x.db" in str(caught.value)


@pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS)
def test_a_milvus_server_that_is_not_there(monkeypatch):
    from contrastive_core.index import milvus_server

    monkeypatch.setattr(milvus_server, "TIMEOUT", 1.0)
    with pytest.raises(InputError, match="does not answer") as caught:
        open_index("http://user:secret@127.0.0.1:9#codes")
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS)
def test_milvus_takes_back_what_a_failed_insertion_left(milvus_file, monkeypatch):
    from contrastive_core.index import milvus_server
    from pymilvus.exceptions import MilvusException

    items = random_items(50, 16)
    where = f"{milvus_file}#broken"
    build_index(where, model(16), items).close()
    monkeypatch.setattr(milvus_server, "BATCH_BYTES", 200)
    insert, calls = pymilvus.MilvusClient.insert, []

    def failing(client, *args, **kwargs):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise MilvusException(message="no space")
        return insert(client, *args, **kwargs)

    monkeypatch.setattr(pymilvus.MilvusClient, "insert", failing)
    with open_index(where) as index:
        with pytest.raises(InputError, match="no space"):
            index.add(random_items(40, 16, seed=7))
        assert index.info().size == 50
        assert index.search(items.vectors[:5]) == brute_force(items, items.vectors[:5], k=10)
    with pytest.raises(InputError, match="no space"):
        build_index(where, model(16, "other"), random_items(40, 16, seed=8), overwrite=True)
    with open_index(where, model(16)) as index:
        assert index.info().size == 50
    with pytest.raises(InputError, match="cannot have that name"):
        build_index(f"{milvus_file}#a b", model(16), items)


def test_a_full_disk_leaves_the_index_as_it_was(folder):
    """The limit on the size of files makes writing fail inside the library, as a full disk does."""
    index = open_index(folder)
    before = index.info().size, index.search(np.zeros((1, 4), np.uint8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = random_items(3000, 32, seed=9, features=8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(InputError, match="could not be changed"):
            index.add(big)
        with pytest.raises(InputError, match="could not be changed"):
            build_index(folder, model(32), big, overwrite=True)
        with pytest.raises(InputError, match="could not be changed"):
            build_index(folder.with_name("new"), model(32), big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not folder.with_name("new").exists()
    for each in (index, open_index(folder)):
        assert (each.info().size, each.search(np.zeros((1, 4), np.uint8))) == before
    index.add(big)
    assert index.info().size == before[0] + 3000


def test_a_first_build_that_was_killed(folder):
    """Data without a version: nothing to open, and a new build takes the place."""
    shutil.rmtree(folder / "items.lance" / "_versions")
    with pytest.raises(InputError, match="no index"):
        open_index(folder)
    assert build_index(folder, model(32), random_items(10, 32)).info().size == 10


WRITER = """
import sys
import numpy as np
from contrastive_core.index import Items, open_index

index = open_index(sys.argv[1])
for batch in range(10_000):
    index.add(Items([f"{batch}/{i}" for i in range(100)], np.full((100, 4), batch % 256, np.uint8), "text",
                    features=np.ones((100, 8))))
    print(batch, flush=True)
"""


def test_a_killed_writer_leaves_whole_batches_and_readers_see_them_grow(folder):
    reader = open_index(folder)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        seen = []
        for _ in range(25):
            last = int(writer.stdout.readline())
            hits = reader.search(np.full((1, 4), last, np.uint8), k=None, radius=0)[0]
            assert len(hits) == 100
            seen.append(reader.info().size)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert all(b >= a for a, b in itertools.pairwise(seen))
    assert all(size % 100 == 0 for size in seen)
    index = open_index(folder)
    assert index.info().size % 100 == 0
    assert index.info().size >= 100 + 100 * (last + 1)
    index.add(Items(["after"], np.zeros((1, 4), np.uint8), "image", features=np.ones((1, 8))))  # nothing is locked
    assert index.delete(["after"]) == 1


def versions(folder):
    return len(list((folder / "items.lance" / "_versions").glob("*.manifest")))


def test_old_versions_go_and_pieces_are_joined(folder, monkeypatch):
    monkeypatch.setattr(embedded, "PIECES", 4)
    monkeypatch.setattr(embedded, "GRACE", timedelta(microseconds=1))
    reader = open_index(folder)
    with open_index(folder) as index:
        for number in range(12):
            index.add(Items([f"n{number}"], np.full((1, 4), number, np.uint8), "text", features=np.ones((1, 8))))
        index.delete([f"n{number}" for number in range(5)])
    assert versions(folder) <= 6
    assert len(list((folder / "items.lance" / "data").iterdir())) <= 6
    assert reader.search(np.full((1, 4), 11, np.uint8), k=1)[0][0].id == "n11"
    items = random_items(100, 32, features=8)
    query = np.full((1, 4), 255, np.uint8)
    assert _bare(reader.search(query, k=1, modality="image")[0][0]) == _bare(
        brute_force(items, query, k=1, modality="image")[0][0]
    )


def test_a_version_that_goes_away_during_a_search_is_read_again(folder, monkeypatch):
    monkeypatch.setattr(embedded, "GRACE", timedelta(microseconds=1))
    reader, nearest, other = open_index(folder), embedded.nearest, random_items(8, 32, seed=11, features=8)
    runs = []

    def slow(*args, **kwargs):
        found = nearest(*args, **kwargs)
        if not runs:
            build_index(folder, model(32), other, overwrite=True).close()
        runs.append(1)
        return found

    monkeypatch.setattr(embedded, "nearest", slow)
    query = np.zeros((1, 4), np.uint8)
    assert reader.search(query, k=8) == brute_force(other, query, k=8)
    assert len(runs) == 2
    build_index(folder, model(32, "other"), other, overwrite=True).close()
    with pytest.raises(InputError, match="another model"):
        reader.search(query)


def test_writers_wait_for_each_other(folder, monkeypatch):
    monkeypatch.setattr(index_folder, "PATIENCE", 0.05)
    index = open_index(folder)
    with index_folder.lock(folder):
        with pytest.raises(InputError, match="another process is changing"):
            index.delete(["x"])
        assert len(index.search(np.zeros((1, 4), np.uint8))[0]) == 10  # readers do not wait


def test_memory_follows_changes_as_if_reopened(tmp_path, monkeypatch):
    """Of a small change only the difference is read; additions land between, before and after what is there."""
    monkeypatch.setattr(embedded, "PIECES", 3)
    updates, updated = [], snapshot._updated
    monkeypatch.setattr(snapshot, "_updated", lambda *args: updates.append(updated(*args)) or updates[-1])
    index = build_index(tmp_path / "index", model(200), random_items(400, 200))
    for seed in range(1, 9):
        new = random_items(10, 200, seed=seed)
        index.add(dataclasses.replace(new, ids=[f"{'amz'[seed % 3]}/{name}" for name in new.ids]))
        index.delete([index._current.ids[seed * 7].as_py(), index._current.ids[0].as_py()])
        now, fresh = index._snapshot(), open_index(tmp_path / "index")._current
        assert now.ids.equals(fresh.ids)
        for name in ("version", "modality", "held", "places", "sums"):
            np.testing.assert_array_equal(getattr(now, name), getattr(fresh, name))
    assert sum(each is not None for each in updates) >= 8
