"""Float vectors, conditions and approximate search of the index: both engines against brute force."""

import dataclasses
import json

import numpy as np
import pytest
from contrastive_core.errors import InputError
from contrastive_core.evaluation import pack_codes
from contrastive_core.evaluation.codes import words
from contrastive_core.index import CodeModel, Items, VectorModel, build_index, lists, open_index, snapshot
from contrastive_core.index.multi_index import MultiIndex
from contrastive_core.index.where import parse_where

try:
    import milvus_lite  # noqa: F401
    import pymilvus  # noqa: F401
except ImportError as error:
    NO_MILVUS = f"{error.name} is not installed (extra milvus-lite)"
else:
    NO_MILVUS = ""

needs_milvus = pytest.mark.skipif(bool(NO_MILVUS), reason=NO_MILVUS)
FIELDS = {"language": "text", "stars": "number", "archived": "boolean"}


@pytest.fixture(scope="module")
def milvus_file(tmp_path_factory):
    return tmp_path_factory.mktemp("milvus") / "vectors.db"


@pytest.fixture(params=["held", "disk", pytest.param("milvus", marks=needs_milvus)])
def location(request, tmp_path, monkeypatch):
    """A place for an index: vectors in memory, on disk alone, or in Milvus."""
    if request.param == "disk":
        monkeypatch.setattr(snapshot, "HELD_BYTES", 0)
    if request.param != "milvus":
        return str(tmp_path / "index")
    name = "".join(each if each.isalnum() else "_" for each in request.node.name)
    return f"{request.getfixturevalue('milvus_file')}#{name}"


def model(dim, metric="cosine", fingerprint="f" * 16):
    return VectorModel("encoder", fingerprint, dim, metric)


def random_items(n, dim, seed=0, clusters=None):
    """Vectors of which every fifth repeats another, so that there are ties; some payloads lack some fields."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((n, dim)).astype(np.float32) * draw.uniform(0.5, 2, (n, 1)).astype(np.float32)
    if clusters:
        centres = draw.standard_normal((clusters, dim)).astype(np.float32)
        vectors = centres[draw.integers(0, clusters, n)] + 0.3 * vectors
    vectors[::5] = vectors[1::5][: len(vectors[::5])] if n >= 5 else vectors[::5]
    payloads = [
        {
            name: value
            for name, value, kept in (
                ("language", ["rust", "go", 'it\'s "C" \\ é'][place % 3], place % 4),
                ("stars", [3, 4.5, -2, 1e3][place % 4], place % 5),
                ("archived", bool(place % 2), place % 7),
                ("tags", ["a", "b"], True),
            )
            if kept
        }
        for place in range(n)
    ]
    ids = [f"s{seed}/{number:04d}" for number in draw.permutation(n)]
    return Items(ids, vectors, [("image", "patch")[place % 2] for place in range(n)], payloads)


def brute_force(items, queries, metric, *, k, allowed=lambda payload: True, kinds=("image", "patch")):
    """Products in double precision of vectors as they are stored."""
    stored, asked = items.vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        stored = (stored / np.linalg.norm(stored, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
        asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    answer = []
    for query in asked:
        scores = (stored * query).sum(1)
        rows = [row for row in range(len(scores)) if allowed(items.payloads[row]) and items.modality[row] in kinds]
        rows.sort(key=lambda row: (-scores[row], items.ids[row], items.modality[row]))
        answer.append([(items.ids[row], items.modality[row], scores[row], items.payloads[row]) for row in rows[:k]])
    return answer


def assert_same(found, expected):
    assert [[(hit.id, hit.modality, hit.payload) for hit in hits] for hits in found] == [
        [(name, modality, payload) for name, modality, _, payload in hits] for hits in expected
    ]
    for hits, wanted in zip(found, expected):
        assert [hit.score for hit in hits] == pytest.approx([score for _, _, score, _ in wanted], abs=1e-12)
        assert all(hit.distance is None for hit in hits)


@pytest.mark.parametrize("metric", ["cosine", "inner"])
@pytest.mark.parametrize("dim", [5, 24])
def test_float_search_is_brute_force_with_ties_by_id(location, metric, dim):
    items, more, queries = random_items(150, dim), random_items(40, dim, seed=1), random_items(6, dim, seed=2).vectors
    with build_index(location, model(dim, metric), items) as index:
        for options in ({"k": 1}, {"k": 10}, {"k": 149}, {"k": 500}, {"k": 7, "modality": "patch"}):
            kind = options.get("modality")
            kinds = {"image", "patch"} if kind is None else {kind}
            expected = brute_force(items, queries, metric, k=options["k"], kinds=kinds)
            assert_same(index.search(queries, **options), expected)
        index.add(more)
        index.delete(items.ids[:30])
    rest = Items(
        [*items.ids[30:], *more.ids],
        np.concatenate([items.vectors[30:], more.vectors]),
        [*items.modality[30:], *more.modality],
        [*items.payloads[30:], *more.payloads],
    )
    with open_index(location, model(dim, metric)) as index:
        assert index.info().size == 160
        assert index.info().fields == FIELDS
        assert json.loads(json.dumps(index.info().to_dict()))["model"]["metric"] == metric
        assert_same(index.search(queries, k=12), brute_force(rest, queries, metric, k=12))


CONDITIONS = {
    'language = "rust"': lambda p: p.get("language") == "rust",
    "language != 'rust'": lambda p: "language" in p and p["language"] != "rust",
    'not language = "rust"': lambda p: "language" in p and p["language"] != "rust",
    'language = "it\'s \\"C\\" \\\\ é"': lambda p: p.get("language", "").startswith("it"),
    "stars >= 4.5": lambda p: p.get("stars", -9) >= 4.5,
    "stars < 3": lambda p: p.get("stars", 9) < 3,
    "not (stars < 3 or archived = true)": lambda p: (
        "stars" in p and p["stars"] >= 3 and "archived" in p and not p["archived"]
    ),
    'stars in (3, 1e3) and language not in ("go", "c")': lambda p: (
        p.get("stars") in (3, 1e3) and "language" in p and p["language"] != "go"
    ),
    'archived != true or (stars > -2 AND language < "h")': lambda p: (
        ("archived" in p and not p["archived"]) or (p.get("stars", -9) > -2 and p.get("language", "z") < "h")
    ),
    'language = "x\' or 1 = 1 --"': lambda p: False,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_choose_what_they_say(filtered, condition):
    items, queries, index = filtered
    expected = brute_force(items, queries, "cosine", k=400, allowed=CONDITIONS[condition])
    assert_same(index.search(queries, k=400, where=condition), expected)
    both = brute_force(items, queries, "cosine", k=9, allowed=CONDITIONS[condition], kinds={"image"})
    assert_same(index.search(queries, k=9, where=condition, modality="image"), both)
    assert_same(index.search(queries, k=9, where=f"({condition}) and modality = 'image'"), both)


@pytest.fixture(scope="module", params=["held", "disk", pytest.param("milvus", marks=needs_milvus)])
def filtered(request, tmp_path_factory):
    """One index a place, with items, queries and the index open."""
    items, queries = random_items(120, 8), random_items(2, 8, seed=3).vectors
    where = tmp_path_factory.mktemp("filtered") / "index"
    if request.param == "milvus":
        where = f"{request.getfixturevalue('milvus_file')}#filtered"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "disk":
            patch.setattr(snapshot, "HELD_BYTES", 0)
        with build_index(where, model(8), items) as index:
            yield items, queries, index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1.*name of a field.*the end"),
        ("language", "= != <"),
        ("language = rust", "expected a value.*rust"),
        ('language = "rust', "unexpected"),
        ('language = "rust" stars = 1', "expected and, or, or the end"),
        ('(language = "rust"', r"expected '\)'"),
        ("stars = 1;drop table", "unexpected ';"),
        ("stars in ()", "expected a value"),
        ("stars = 1e999", "too large"),
        ("stars = nan", "expected a value"),
        ("colour = 1", "knows archived, language, modality, stars"),
        ('stars = "3"', "holds number.*text"),
        ("language = 3", "holds text.*number"),
        ("archived = 1", "holds boolean"),
        ("archived < true", "no order"),
        ("not " * 60 + "stars = 1", "nested"),
        ("(" * 60 + "stars = 1" + ")" * 60, "nested"),
        ("stars = 1 or " * 1000 + "stars = 1", "longer than"),
        ('language = "\udcff"', "not valid Unicode"),
    ],
)
def test_conditions_that_cannot_be_read(text, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        parse_where(text, FIELDS)


def test_fields_that_come_later(location):
    items = Items(["a", "b"], np.eye(2, 4, dtype=np.float32), payloads=[{"x": 1}, {}])
    with build_index(location, model(4), items) as index:
        reader = open_index(location) if "#" not in location else index
        index.add(Items(["c"], np.eye(1, 4, k=2, dtype=np.float32), "other", [{"y": "new", "X": True}]))
        query = np.ones((1, 4), np.float32)
        assert [hit.id for hit in reader.search(query, where='y = "new" and X = true')[0]] == ["c"]
        assert [hit.id for hit in reader.search(query, where="x != 2")[0]] == ["a"]
        assert reader.search(query, where='modality in ("other")')[0][0].id == "c"
        assert reader.info().items == {"item": 2, "other": 1}
        with pytest.raises(InputError, match=r"two kinds(?s:.*)'x'(?s:.*)text(?s:.*)number"):
            index.add(Items(["d"], query, payloads=[{"x": "one"}]))
        with pytest.raises(InputError, match="compared exactly"):
            index.add(Items(["d"], query, payloads=[{"x": 2**53 + 1}]))
        assert index.info().fields == {"x": "number", "y": "text", "X": "boolean"}
        assert index.info().size == 3


@pytest.mark.unchecked
def test_refusals_of_float_vectors(location):
    items = random_items(20, 6)
    one = items.vectors[:1]
    with build_index(location, model(6), items) as index:
        before = index.search(items.vectors, k=3)
        for action, message in (
            (lambda: index.add(Items(["new"], np.full((1, 6), np.nan, np.float32))), "zero, too large or not finite"),
            (lambda: index.add(Items(["new"], np.full((1, 6), np.inf, np.float32))), "not finite"),
            (lambda: index.add(Items(["new"], np.zeros((1, 6), np.float32))), "zero"),
            (lambda: index.add(Items(["new"], np.ones((1, 5), np.float32))), r"6 floats, cosine.*\(1, 5\)"),
            (lambda: index.add(Items(["new"], np.ones((1, 6), np.uint8))), "do not fit.*uint8"),
            (lambda: index.add(Items(["new"], one, "a b")), "short name"),
            (lambda: index.add(Items(["new"], one, features=np.ones((1, 4)))), "no features"),
            (lambda: index.search(np.full((1, 6), np.nan, np.float32)), "not finite"),
            (lambda: index.search(one, radius=3), "belong to an index of codes"),
            (lambda: index.search(one, features=np.ones((1, 6)), rerank=10), "belong to an index of codes"),
            (lambda: index.search(one, k=None), "number of hits"),
            (lambda: index.search(one, k=5, rerank=2), "at least k"),
            (lambda: index.search(one, exact=False), "no approximate search"),
            (lambda: index.search(one, where="size = 1"), "knows archived"),
            (lambda: index.optimise(recall=float("nan")), "recall lies"),
            (lambda: index.optimise(recall=1.5), "recall lies"),
            (lambda: open_index(location, model(6, "inner")), "another model.*cosine.*inner"),
            (lambda: open_index(location, CodeModel("x", "f" * 16, 6)), "another model"),
            (lambda: build_index(location, VectorModel("x", "f", 6, "l2"), items), "cosine, inner"),
        ):
            with pytest.raises(InputError, match=f"(?s){message}"):
                action()
        assert index.search(items.vectors, k=3) == before


def test_zero_vectors_have_an_inner_product(tmp_path):
    items = Items(["a", "z"], np.array([[-1.0, 0], [0, 0]], np.float32))
    with build_index(tmp_path / "index", model(2, "inner"), items) as index:
        assert [hit.id for hit in index.search(np.array([[1.0, 0]]))[0]] == ["z", "a"]


def test_a_changed_float_is_noticed(tmp_path, monkeypatch):
    """Vectors in memory when the index is opened, others when they are read."""
    items = random_items(60, 16)
    build_index(tmp_path / "index", model(16, "inner"), items).close()
    file = max((tmp_path / "index" / "items.lance" / "data").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    first = min(range(60), key=lambda place: (items.ids[place], items.modality[place]))
    place = content.find(items.vectors[first].tobytes())
    assert place >= 0
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        open_index(tmp_path / "index")
    monkeypatch.setattr(snapshot, "HELD_BYTES", 0)
    index = open_index(tmp_path / "index")
    with pytest.raises(InputError, match="damaged"):
        index.search(items.vectors[first][None], k=60)


# Approximate search.


def test_tables_of_substrings_return_what_is_near_in_one_of_them():
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (6, 40))
    codes = pack_codes(centres[draw.integers(0, 6, 500)] ^ (draw.random((500, 40)) < 0.1))
    queries = codes[:30]
    bits, asked = np.unpackbits(codes, axis=1), np.unpackbits(queries, axis=1)
    distance = (bits[None] != asked[:, None]).sum(2)
    apart = np.stack([(bits[None, :, s : s + 16] != asked[:, None, s : s + 16]).sum(2) for s in (0, 16)]).min(0)
    for flips in (0, 1, 2):
        near = MultiIndex(words(codes), 40).nearest(queries, k=25, flips=flips)
        for (rows, got), far, nearest_part in zip(near, distance, apart):
            expected = [row for row in np.argsort(far, kind="stable") if nearest_part[row] <= flips][:25]
            assert rows.tolist() == expected
            assert got.tolist() == far[expected].tolist()


def test_codes_are_searched_approximately_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "FEW", 1000)
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (200, 64))
    codes = pack_codes(centres[draw.integers(0, 200, 4000)] ^ (draw.random((4000, 64)) < 0.05))
    items = Items([f"{row:04d}" for row in range(4000)], codes, payloads=[{"n": row} for row in range(4000)])
    with build_index(tmp_path / "index", CodeModel("hash", "x", 64), items) as index:
        assert index.info().approximation is None
        made = index.optimise(recall=0.99)
        assert made is not None
        assert 0.99 <= made.recall <= 1
        assert index.info().approximation == made
        exact, near = index.search(codes[:50], exact=True), index.search(codes[:50], exact=False)
        assert index.search(codes[:50]) == exact
        hits = [len({h.id for h in a} & {h.id for h in b}) for a, b in zip(exact, near)]
        assert np.mean(hits) >= 9.8
        assert near != exact or made.recall == 1
        far = np.bitwise_not(codes[:2])  # nothing shares a substring: those queries are scanned
        assert index.search(far, exact=False, k=4000) == index.search(far, exact=True, k=4000)
        assert index.search(far, exact=False, where="n < 5") == index.search(far, exact=True, where="n < 5")
    random = Items(items.ids, draw.integers(0, 256, codes.shape, dtype=np.uint8))
    with build_index(tmp_path / "random", CodeModel("hash", "x", 64), random) as index:
        assert index.optimise() is None  # among 4,000 codes without structure nothing is quicker than a scan
        with pytest.raises(InputError, match="no approximate search"):
            index.search(codes[:1], exact=False)
    with build_index(tmp_path / "index", CodeModel("hash", "x", 64), random, overwrite=True) as index:
        assert index.info().approximation is None  # what was built belongs to the index that was replaced


@pytest.mark.parametrize("dim", [16, 12])
def test_lists_of_floats_reach_the_recall_and_see_every_change(tmp_path, monkeypatch, dim):
    monkeypatch.setattr(lists, "FEW", 1000)
    monkeypatch.setattr(snapshot, "HELD_BYTES", 0)
    items = random_items(3000, dim, clusters=40)
    items = dataclasses.replace(items, modality="item", payloads=[{"n": row} for row in range(3000)])
    queries, stages = items.vectors[:40] + np.float32(0.01), []
    path = tmp_path / "index"
    with build_index(path, model(dim), items, progress=lambda *stage: stages.append(stage)) as index:
        made = index.info().approximation
        assert made is not None  # built at once, as a scan would be slow
        assert made.recall >= 0.99
        assert {"writing", "measuring the recall"} <= {name for name, _, _ in stages}
        exact, near = index.search(queries, exact=True), index.search(queries)
        hits = [len({h.id for h in a} & {h.id for h in b}) for a, b in zip(exact, near)]
        assert np.mean(hits) >= 9.5
        assert {(h.id, h.score) for h in near[0]} <= {(h.id, h.score) for h in index.search(queries, k=3000)[0]}
        index.add(Items(["new"], queries[:1], payloads=[{"n": -1}]))
        assert index.search(queries[:1])[0][0].id == "new"
        assert [h.id for h in index.search(queries[:1], where="n < 0")[0]] == ["new"]
        rare = index.search(queries, where="n >= 2990", k=10)
        assert rare == index.search(queries, where="n >= 2990", k=10, exact=True)
        index.delete(["new"])
        assert index.search(queries, exact=True) == exact
        assert index.search(queries[:1])[0][0].id != "new"
        (path / "approximation.json").write_text("{")
        with pytest.raises(InputError, match="index optimise"):
            index.search(queries)
        index.optimise()
        assert index.search(queries, exact=True) == exact


@needs_milvus
def test_milvus_builds_its_own_lists(milvus_file, monkeypatch):
    from contrastive_core.index import milvus, milvus_server

    monkeypatch.setattr(milvus, "FEW", 1000)
    items = random_items(1500, 16, clusters=30)
    where = f"{milvus_file}#approximate"
    with build_index(where, model(16), items) as index:
        exact = index.search(items.vectors[:30], k=5)
        made = index.optimise(recall=0.9)
        assert made is not None
        assert made.recall >= 0.9
        near = index.search(items.vectors[:30], k=5)
        assert np.mean([len({h.id for h in a} & {h.id for h in b}) for a, b in zip(exact, near)]) >= 4.5
        with pytest.raises(InputError, match="approximate"):
            index.search(items.vectors[:1], exact=True)
        with monkeypatch.context() as patch:
            patch.setattr(milvus_server, "reindex", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                index.optimise()
        with pytest.raises(InputError, match="optimised when"):
            index.search(items.vectors[:1])
        monkeypatch.setattr(milvus, "FEW", 10_000)
        assert index.optimise() is None
        assert index.search(items.vectors[:30], k=5) == exact


def test_missing_libraries_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("contrastive_core.index.find_spec", lambda name: None)
    for where in (tmp_path / "index", "http://localhost:19530#x"):
        with pytest.raises(InputError, match=r"contrastive-core\[index\]"):
            open_index(where)


def test_a_reader_keeps_up_with_an_optimised_index(tmp_path):
    items = random_items(30, 4)
    with build_index(tmp_path / "index", model(4), items) as index:
        reader = open_index(tmp_path / "index")
        index.delete(items.ids[:3])
        index.optimise()
        assert reader.info().size == 27
