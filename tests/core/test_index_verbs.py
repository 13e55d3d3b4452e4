"""The verbs of an index, on files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from contrastive_core.cli import App
from contrastive_core.index.verbs import index_commands


@pytest.fixture
def run(capsys):
    def run(*words):
        app = App("cl-test", "Test.", "0")
        app.method("index", "An index.", index_commands())
        code = app.run(["index", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def files(tmp_path):
    """Vectors and a table; a column of numbers, one of texts that look like numbers, one of booleans."""
    draw = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", draw.standard_normal((6, 8)).astype(np.float32))
    rows = ["id,modality,stars,code,new,note"]
    rows += [f"f/{n},{'image' if n < 3 else ''},{n}.5,00{n},{'true' if n % 2 else 'false'}," for n in range(6)]
    (tmp_path / "items.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_verbs_from_files_to_hits(run, files):
    index, vectors = files / "index", files / "v.npy"
    assert run("build", vectors, files / "items.csv", index, "--model", "m@1")[:2] == (0, f"6 items in {index}\n")
    info = json.loads(run("info", index, "--json")[1])
    assert info["fields"] == {"stars": "number", "code": "text", "new": "boolean"}
    assert info["items"] == {"image": 3, "item": 3}
    hits = json.loads(run("search", index, vectors, "--model", "m@1", "-k", "1", "--json")[1])
    assert [hit["id"] for hit in hits] == [f"f/{n}" for n in range(6)]
    assert hits[2]["payload"] == {"stars": 2.5, "code": "002", "new": False}
    assert hits[2]["score"] == pytest.approx(1)
    where = 'new = true and (code = "001" or stars >= 5.5)'
    out = files / "hits.jsonl"
    assert run("search", index, vectors, "--model", "m@1", "--where", where, "--out", out)[0] == 0
    assert {json.loads(line)["id"] for line in out.read_text().splitlines()} == {"f/1", "f/5"}
    assert run("search", index, vectors, "--model", "m@1", "--out", out)[0] == 2
    assert run("delete", index, "--id", "f/0", "--id", "f/1")[1] == f"2 items deleted, 4 left in {index}\n"
    np.save(files / "two.npy", np.ones((2, 8)))
    (files / "two.jsonl").write_text('{"id": "f/0", "stars": 1, "tags": ["x"]}\n{"id": "g"}\n')
    assert run("add", files / "two.npy", files / "two.jsonl", index, "--model", "m@1")[0] == 0
    (files / "one.csv").write_text("id,code\nh,7\n")  # a column of the index keeps its kind
    np.save(files / "one.npy", np.ones((1, 8)))
    assert run("add", files / "one.npy", files / "one.csv", index, "--model", "m@1")[0] == 0
    assert json.loads(run("optimise", index, "--json")[1]) == {"approximation": None}
    assert "every search is exact" in run("info", index)[1]


def test_codes_with_features(run, files):
    np.save(files / "c.npy", np.arange(6, dtype=np.uint8)[:, None] << 4)
    (files / "ids.txt").write_text("".join(f"{n}\n" for n in range(6)))
    options = ("--model", "h", "--metric", "hamming", "--bits", "4", "--features", files / "v.npy")
    assert run("build", files / "c.npy", files / "ids.txt", files / "i", *options)[0] == 0
    hits = json.loads(run("search", files / "i", files / "c.npy", "--model", "h", "--radius", "0", "--json")[1])
    assert [(hit["id"], hit["distance"]) for hit in hits] == [(f"{n}", 0) for n in range(6)]
    words = ("--model", "h", "-k", "1", "--rerank", "6", "--features", files / "v.npy", "--json")
    assert [hit["id"] for hit in json.loads(run("search", files / "i", files / "c.npy", *words)[1])] == list("012345")


def test_bad_files_are_refused_in_one_block(run, files):
    index, vectors = files / "index", files / "v.npy"
    run("build", vectors, files / "items.csv", index, "--model", "m")
    (files / "short.txt").write_text("a\n")
    (files / "bad.jsonl").write_text('{"name": "a"}\n')
    (files / "bad.csv").write_text("name\na\n")
    (files / "number.csv").write_text("id,stars\nx,many\n")
    np.save(files / "one.npy", np.ones((1, 8)))
    np.save(files / "flat.npy", np.ones(8))
    np.save(files / "objects.npy", np.array([[{}]]), allow_pickle=True)
    for words, message in (
        (("build", vectors, files / "short.txt", files / "new", "--model", "m"), "6 rows, but 1 items"),
        (("build", vectors, files / "bad.jsonl", files / "new", "--model", "m"), "no object with an id"),
        (("build", vectors, files / "bad.csv", files / "new", "--model", "m"), "id"),
        (("build", vectors, vectors, files / "new", "--model", "m"), ".txt, .csv or .jsonl"),
        (("build", files / "flat.npy", files / "short.txt", files / "new", "--model", "m"), "no matrix"),
        (("build", files / "objects.npy", files / "short.txt", files / "new", "--model", "m"), "cannot be read"),
        (("build", vectors, files / "items.csv", files / "new", "--model", "m", "--bits", "8"), "belongs to codes"),
        (("build", vectors, files / "items.csv", index, "--model", "m"), "already"),
        (("add", files / "one.npy", files / "number.csv", index, "--model", "m"), "no number"),
        (("add", vectors, files / "items.csv", index, "--model", "other"), "another model"),
        (("search", index, vectors, "--model", "other"), "another model"),
        (("search", index, vectors, "--model", "m", "--where", "size = 1"), "code, modality, new, stars"),
        (("search", index, files / "absent.npy", "--model", "m"), "missing"),
        (("delete", index), "nothing to delete"),
        (("info", files / "absent"), "no index"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert message in err, (words, err)
    assert not (files / "new").exists()


def test_help_imports_neither_torch_nor_lancedb():
    code = (
        "import sys; from contrastive_core.cli import App; from contrastive_core.index.verbs import index_commands;"
        "app = App('cl-test', 'Test.', '0'); app.method('index', 'An index.', index_commands());"
        "app.run(['index', '--help']); app.run(['index', 'search', '--help']);"
        "sys.exit(bool({'torch', 'lancedb', 'pymilvus', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
