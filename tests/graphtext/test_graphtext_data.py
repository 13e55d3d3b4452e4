"""Graphs, readers, noise, text caches and language models: what they read, and what they refuse."""

import contextlib
import csv
import dataclasses
import gzip
import json
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cl_graphtext.graphs.graph import both_directions, build, describe, full_texts, undirected
from cl_graphtext.graphs.importers import import_cstag, import_promptgfm, import_wikics
from cl_graphtext.graphs.in_memory import as_graph, from_data
from cl_graphtext.graphs.perturb import KINDS, graph_perturb, parse_perturbation
from cl_graphtext.graphs.planetoid import import_planetoid
from cl_graphtext.graphs.reading import dump_jsonl, extend_graph, read_graph, write_graph
from cl_graphtext.graphs.samples import debian_graph, python_graph, sample_graph
from cl_graphtext.graphs.splits import random_split
from cl_graphtext.promptgnn_sim.data import node_split
from contrastive_core.errors import ContrastiveWarning, InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch_geometric.data import Data

from .conftest import themed


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# Graphs


def test_edges_become_undirected_unique_and_loopless_with_a_note():
    with pytest.warns(ContrastiveWarning) as notes:
        graph = build(
            ids=["a", "b", "c"],
            texts=["x  y\n z", "", ""],
            titles=["", "t", ""],
            labels=np.array([0, 0, -1]),
            classes=["k"],
            edges=np.array([[1, 0], [0, 1], [0, 1], [2, 2]]),
            where="data",
        )
    text = " ".join(str(note.message) for note in notes)
    assert "1 self-loops" in text
    assert "1 duplicate edges" in text
    assert "1 nodes have neither" in text
    assert graph.edges.tolist() == [[0, 1]]
    assert graph.texts[0] == "x y z"
    assert both_directions(graph.edges).tolist() == [[1, 0], [0, 1]]
    facts = describe(graph)
    assert (facts["isolated nodes"], facts["components"], facts["unlabelled"]) == (1, 2, 1)
    assert facts["homophily"] == 1.0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"edges": np.array([[0, 7]])}, "not there"),
        ({"edges": np.array([[-1, 0]])}, "not there"),
        ({"ids": ["a", "a"]}, "twice"),
        ({"labels": np.array([0, 5])}, "no class"),
        ({"texts": ["x"]}, "differ"),
        ({"split": {"train": np.array([0]), "test": np.array([0])}}, "two parts"),
        ({"split": {"train": np.array([9])}}, "not there"),
        (
            {"ids": [], "texts": [], "titles": [], "labels": np.zeros(0, int), "edges": np.zeros((0, 2), int)},
            "no nodes",
        ),
    ],
)
def test_graphs_that_cannot_be_are_refused(change, text):
    good = {
        "ids": ["a", "b"],
        "texts": ["x", "y"],
        "titles": ["", ""],
        "labels": np.array([0, 1]),
        "classes": ["k", "l"],
        "edges": np.array([[0, 1]]),
    }
    with pytest.raises(InputError, match=text):
        build(**{**good, **change})


def test_a_graph_goes_to_the_library_and_back(graph):
    data = graph.to_data(torch.zeros(len(graph), 3))
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert data.is_coalesced()
    back = from_data(data, classes=graph.classes)
    assert back.texts == graph.texts
    np.testing.assert_array_equal(back.edges, graph.edges)
    with pytest.raises(InputError, match="no text"):
        from_data(Data(num_nodes=1))


def test_splits_are_disjoint_seeded_and_of_the_size_asked_for(graph):
    a = random_split(graph.labels, rate="60/20/20", seed=1)
    assert [len(a[part]) for part in ("train", "val", "test")] == [54, 18, 18]
    assert len(np.unique(np.concatenate(list(a.values())))) == 90
    few = random_split(graph.labels, rate="5-per-class", seed=1)
    assert np.bincount(graph.labels[few["train"]]).tolist() == [5, 5, 5]
    np.testing.assert_array_equal(few["test"], random_split(graph.labels, rate="5-per-class", seed=1)["test"])
    for bad in ("60/20", "half", "90/5/6", "x-per-class"):
        with pytest.raises(InputError, match="split"):
            random_split(graph.labels, rate=bad)
    with pytest.raises(InputError, match="too small"):
        random_split(graph.labels, rate="30-per-class")


@pytest.mark.parametrize("kind", KINDS)
def test_noise_keeps_nodes_and_form_and_repeats_with_its_seed(graph, kind):
    assert graph_perturb(graph, kind, 0.0, seed=3) is graph
    noisy = graph_perturb(graph, kind, 0.5, seed=3)
    assert len(noisy) == len(graph)
    np.testing.assert_array_equal(noisy.edges, undirected(noisy.edges))
    again = graph_perturb(graph, kind, 0.5, seed=3)
    np.testing.assert_array_equal(noisy.edges, again.edges)
    assert noisy.texts == again.texts
    other = graph_perturb(graph, kind, 0.5, seed=4)
    assert other.texts != noisy.texts if kind == "text-drop" else not np.array_equal(other.edges, noisy.edges)
    e = len(graph.edges)
    old = {tuple(edge) for edge in graph.edges.tolist()}
    new = {tuple(edge) for edge in noisy.edges.tolist()}
    if kind in ("drop", "rewire"):
        assert len(old & new) == e - round(0.5 * e)
    if kind == "rewire":
        assert len(new) == e
    if kind == "add":
        assert old < new
        assert len(new) == e + round(0.5 * e)
    if kind == "node-drop":
        assert new < old
    if kind == "text-drop":
        words = sum(len(text.split()) for text in noisy.texts) / sum(len(text.split()) for text in graph.texts)
        assert 0.4 < words < 0.6


def test_noise_that_cannot_be_is_refused(graph):
    assert parse_perturbation("rewire:0.5") == ("rewire", 0.5)
    for word in ("rewire", "shake:0.1", "drop:2", "drop:x"):
        with pytest.raises(InputError, match="noise"):
            parse_perturbation(word)
    with pytest.raises(InputError, match="rate"):
        graph_perturb(graph, "drop", 1.5)
    complete = build(
        ids=list("abc"),
        texts=list("abc"),
        titles=list("abc"),
        labels=np.zeros(3, int),
        classes=["k"],
        edges=np.array([[0, 1], [1, 2], [0, 2]]),
    )
    assert len(graph_perturb(complete, "add", 1.0).edges) == 3


# Readers


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_a_folder_reads_back_what_was_written(graph, tmp_path, table):
    split = random_split(graph.labels, seed=0)
    full = build(
        ids=graph.ids,
        texts=graph.texts,
        titles=graph.titles,
        labels=np.where(np.arange(90) < 80, graph.labels, -1),
        classes=graph.classes,
        descriptions=["a", "b", "c"],
        edges=graph.edges,
        split=split,
        noun="article",
    )
    write_graph(full, tmp_path / "g", format=table)
    back = read_graph(tmp_path / "g")
    assert (back.ids, back.texts, back.titles, back.classes) == (full.ids, full.texts, full.titles, full.classes)
    assert back.descriptions == ("a", "b", "c")
    assert back.noun == "article"
    np.testing.assert_array_equal(back.labels, full.labels)
    np.testing.assert_array_equal(back.edges, full.edges)
    np.testing.assert_array_equal(back.split["test"], split["test"])
    with pytest.raises(InputError, match="holds files"):
        write_graph(full, tmp_path / "g")
    write_graph(graph, tmp_path / "g", format="csv", overwrite=True)
    assert not read_graph(tmp_path / "g").split


def test_compressed_tables_with_other_names_and_lines_in_quotes_are_read(tmp_path):
    text = 'paper_id,label,title,abstract\n1,B,T,"two\nlines, ""quoted"""\n2,A,,\n3,,X,y\n'
    (tmp_path / "nodes.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "edges.csv").write_text("paper_id1,paper_id2\n1,2\n")
    with pytest.warns(ContrastiveWarning, match="neither"):
        graph = read_graph(tmp_path)
    assert graph.texts[0] == 'two lines, "quoted"'
    assert (graph.classes, graph.labels.tolist(), graph.noun) == (("A", "B"), [1, 0, -1], "paper")
    assert full_texts(graph)[0].startswith("T. two lines")


@pytest.mark.parametrize(
    ("nodes", "edges", "text"),
    [
        (b"node_id,text\na,x\n", b"src,dst\na,zz\n", "'zz'"),
        (b"node_id,text\na,caf\xe9\n", b"src,dst\n", "not UTF-8"),
        (b"node_id,text\na,x,y\n", b"src,dst\n", "cells"),
        (b"node_id,words\na,x\n", b"src,dst\n", "column is missing"),
        (b"node_id,text\na,x\n", b"alpha,beta\na,a\n", "column is missing"),
        (b"node_id,text\na,x\nb,y\n", b"a,b\n", "column is missing"),
        (b"node_id,text,text\na,x,y\n", b"src,dst\n", "twice"),
        (b"node_id,text\na,x\na,y\n", b"src,dst\n", "twice"),
        (b"node_id,text\n", b"src,dst\n", "no nodes"),
        (b"", b"", "empty"),
    ],
)
def test_damaged_folders_are_refused_by_name(tmp_path, nodes, edges, text):
    (tmp_path / "nodes.csv").write_bytes(nodes)
    (tmp_path / "edges.csv").write_bytes(edges)
    with pytest.raises(InputError, match=text) as caught:
        read_graph(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_and_broken_files_are_refused(graph, tmp_path):
    with pytest.raises(InputError, match="missing"):
        read_graph(tmp_path / "nowhere")
    with pytest.raises(InputError, match="missing"):
        read_graph(tmp_path)
    write_graph(graph, tmp_path / "g")
    (tmp_path / "g" / "splits.json").write_text('{"train": ["n0"], "test": ["zz"]}')
    with pytest.raises(InputError, match="zz"):
        read_graph(tmp_path / "g")
    (tmp_path / "g" / "splits.json").write_text("[1]")
    with pytest.raises(InputError, match="split"):
        read_graph(tmp_path / "g")
    (tmp_path / "g" / "splits.json").unlink()
    write_csv(tmp_path / "g" / "labels.csv", [["label"], ["birds"]])
    with pytest.raises(InputError, match="table of labels"):
        read_graph(tmp_path / "g")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "nodes.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_graph(tmp_path / "p")


def test_new_nodes_join_a_known_graph(graph, tmp_path):
    write_csv(tmp_path / "nodes.csv", [["node_id", "text"], ["new1", "robin heron"], ["new2", "mast"]])
    write_csv(tmp_path / "edges.csv", [["src", "dst"], ["new1", "n0"], ["new2", "new1"]])
    whole, nodes = extend_graph(graph, tmp_path)
    assert nodes.tolist() == [90, 91]
    assert {(0, 90), (90, 91)} <= {tuple(edge) for edge in whole.edges.tolist()}
    assert len(whole.edges) == len(graph.edges) + 2
    assert whole.labels[90:].tolist() == [-1, -1]
    write_csv(tmp_path / "nodes.csv", [["node_id", "text"], ["n0", "robin"]])
    with pytest.raises(InputError, match="known one"):
        extend_graph(graph, tmp_path)


# The reading rule


def folder(place, nodes, edges="src,dst\n", **files):
    place.mkdir(exist_ok=True)
    (place / "nodes.csv").write_text(nodes, encoding="utf-8")
    (place / "edges.csv").write_text(edges, encoding="utf-8")
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return place


def test_ids_and_labels_are_the_strings_that_were_written(tmp_path):
    place = folder(
        tmp_path,
        "\ufeffNode_ID,text,Label\n007,a\u2028b,1_1\n1_1,b,01\n0,c,\n",
        "source,target\n0,007\n",
        splits__json='{"Training": ["007", 0], "dev": [], "test_idx": ["1_1"]}',
    )
    graph = read_graph(place)
    assert graph.ids == ("007", "1_1", "0")
    assert graph.classes == ("1_1", "01")
    assert graph.labels.tolist() == [0, 1, -1]
    assert graph.edges.tolist() == [[0, 2]]
    assert {part: nodes.tolist() for part, nodes in graph.split.items()} == {"train": [0, 2], "val": [], "test": [1]}


@pytest.mark.parametrize(
    ("nodes", "edges", "files", "text"),
    [
        ("node_id,text\n1,a\n", "src,dst\n 1,1\n", {}, "' 1'"),
        ("node_id,text\n 1,a\n", "src,dst\n", {}, "line 2"),
        ("node_id,text,label\n1,a,x\n2,b,x \n", "src,dst\n", {}, "line 3"),
        ("node_id,text,label\n1,a,nan\n", "src,dst\n", {}, "missing label"),
        ("node_id,text,label\n1,a,0\n2,b,-1\n", "src,dst\n", {}, "line 3"),
        ('node_id,text\n1,"a\n2,b\n', "src,dst\n", {}, "cannot be read"),
        ("node_id,text,label\n1,a,x\n", "src,dst\n", {"labels.csv": "label\nx\ny\nx\n"}, "line 4"),
        ("node_id,text\n1,a\n", "src,dst\n", {"splits.json": '{"train": ["1"], "banana": []}'}, "banana"),
        ("node_id,text\n1,a\n", "src,dst\n", {"splits.json": '{"val": [], "valid": []}'}, "both name val"),
        ("node_id,text\n1,a\n", "src,dst\n", {"splits.json": '{"train_mask": [true]}'}, "True"),
        ("node_id,text\n1,a\n", "src,dst\n", {"graph.json": "[1]"}, "graph.json"),
        ("node_id,text\n1,a\n", "src,dst\n", {"nodes.tsv": "node_id\ttext\n1\ta\n"}, "twice"),
    ],
)
def test_what_is_untidy_or_unknown_is_refused_by_file_and_line(tmp_path, nodes, edges, files, text):
    place = folder(tmp_path, nodes, edges)
    for name, content in files.items():
        (place / name).write_text(content)
    with pytest.raises(InputError, match=text) as caught:
        read_graph(place)
    assert str(tmp_path) in str(caught.value)


def test_entries_that_are_not_read_are_named(tmp_path):
    place = folder(tmp_path, "node_id,text,year\n1,a,1999\n", splits__txt="1")
    with pytest.warns(ContrastiveWarning, match=r"not read: nodes.csv: year, splits.txt"):
        read_graph(place)
    (place / "nodes.csv").rename(place / "node.csv")
    with pytest.raises(InputError, match=r"holds edges.csv, node.csv"):
        read_graph(place)


def test_typed_tables_are_converted_by_type_or_refused(tmp_path):
    def read(**columns):
        nodes = {"node_id": [1, 2], "text": ["a", None], "title": ["t", "u"]} | columns
        pq.write_table(pa.table(nodes), tmp_path / "nodes.parquet")
        pq.write_table(pa.table({"src": [1.0], "dst": [2.0]}), tmp_path / "edges.parquet")
        return read_graph(tmp_path)

    graph = read(label=[0, 1])
    assert (graph.ids, graph.classes, graph.texts) == (("1", "2"), ("0", "1"), ("a", ""))
    assert read(label=[None, 7.0]).labels.tolist() == [-1, 0]
    assert read(text=[b"caf\xc3\xa9", b""]).texts[0] == "café"
    for bad, where in [
        ({"node_id": [0, None]}, "row 2"),
        ({"label": [0.5, 1.0]}, "row 1"),
        ({"text": [["a", "b"], ["c"]]}, "row 1"),
        ({"text": [b"\xff", b""]}, "row 1"),
    ]:
        with pytest.raises(InputError, match=where):
            read(**bad)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["nodes.csv", "nodes.csv.gz", "nodes.parquet", "splits.json"]), st.binary(max_size=200), st.data()
)
def test_any_bytes_give_a_graph_or_one_block(name, content, data):
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore", ContrastiveWarning)
        path = Path(place) / "g"
        write_graph(themed(6, homophilic=2), path, format="parquet" if name.endswith("parquet") else "csv")
        whole = path / name
        if name == "nodes.csv.gz":
            whole.write_bytes(gzip.compress((path / "nodes.csv").read_bytes()))
            (path / "nodes.csv").unlink()
        old = whole.read_bytes() if whole.exists() else b'{"train": ["n0"], "val": [], "test": ["n1"]}'
        at = data.draw(st.integers(0, len(old)))
        whole.write_bytes(
            data.draw(st.sampled_from([content, old[:at], old[:at] + content + old[at + len(content) :]]))
        )
        with contextlib.suppress(InputError):
            assert len(read_graph(path)) > 0


# In memory


EDGES = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    "texts", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"]), pd.Series(["a", "b", "c"])], ids=type
)
def test_texts_of_any_sequence_and_plain_mappings_make_graphs(texts):
    for fields in (Data(num_nodes=3, edge_index=EDGES, text=texts), {"edge_index": EDGES.numpy(), "text": texts}):
        graph = as_graph(fields)
        assert graph.texts == ("a", "b", "c")
        assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert as_graph(graph) is graph
    assert len(from_data({"text": texts}).edges) == 0


def test_labels_masks_and_ids_in_memory_are_taken_as_they_are_meant():
    column = torch.ones(3, 1, dtype=torch.bool)
    graph = from_data(Data(num_nodes=3, text=list("abc"), y=torch.tensor([[0], [1], [-1]]), train_mask=column))
    assert graph.labels.tolist() == [0, 1, -1]
    assert graph.split["train"].tolist() == [0, 1, 2]
    named = {"text": list("abc"), "y": ["x", None, "w"], "node_id": [0, 1, 2], "valid_idx": [0], "test_mask": [0, 0, 1]}
    graph = from_data(named)
    assert (graph.classes, graph.labels.tolist(), graph.ids) == (("w", "x"), [1, -1, 0], ("0", "1", "2"))
    assert {part: nodes.tolist() for part, nodes in graph.split.items()} == {"val": [0], "test": [2]}
    with pytest.warns(ContrastiveWarning, match="neither"):
        assert from_data({"text": ["a", None, float("nan")]}).texts == ("a", "", "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_nodes": 5}, "differ in number"),
        ({"y": [0.5, 1.0, 2.0]}, "no classes"),
        ({"y": np.eye(3, dtype=int)}, "one class a node"),
        ({"y": [0, 1]}, "differ in number"),
        ({"y": [0, 1, -5]}, "no class"),
        ({"train_mask": np.ones((3, 20), bool)}, "several"),
        ({"train_mask": [True, False]}, "2 of 3 nodes"),
        ({"banana_mask": [True, False, True]}, "banana"),
        ({"edge_index": np.zeros((5, 3), int)}, "two rows"),
        ({"text": ["a", 0, "c"]}, "node 1"),
        ({"node_id": ["1", "1", "2"]}, "twice"),
        ({"node_id": [1.5, 2, 3]}, "1.5"),
    ],
)
def test_what_does_not_fit_in_memory_is_refused(change, text):
    with pytest.raises((InputError, ContrastiveWarning), match=text):
        from_data({"text": list("abc"), "edge_index": EDGES, **change})


def test_the_data_s_split_wins_and_needs_all_its_parts(graph):
    split = random_split(graph.labels, seed=3)
    own = dataclasses.replace(graph, split=split)
    assert node_split(own, "20/20/60", 0) is own.split
    assert len(node_split(graph, "20/20/60", 0)["train"]) == 18
    with pytest.raises(InputError, match="val"):
        node_split(dataclasses.replace(graph, split={"train": split["train"], "test": split["test"]}), "60/20/20", 0)
    with pytest.raises(InputError, match="no labels"):
        node_split(dataclasses.replace(graph, labels=np.full(90, -1)), "60/20/20", 0)


def test_half_characters_are_replaced_before_anything_is_written(tmp_path):
    graph = from_data({"text": ["a dog \ud83d", "b"]})
    write_graph(graph, tmp_path / "g")
    assert read_graph(tmp_path / "g").texts[0] == "a dog \ufffd"
    dump_jsonl(tmp_path / "x.jsonl", [{"answer": "cut \ud83d"}])
    assert json.loads((tmp_path / "x.jsonl").read_text())["answer"] == "cut \ufffd"


# Formats of others


def promptgfm(folder, shift, graph):
    n = len(graph)
    write_csv(folder / "data.csv", [["paper_id", "label"], *([i, graph.classes[graph.labels[i]]] for i in range(n))])
    write_csv(folder / "graph.csv", [["paper_id1", "paper_id2"], *graph.edges.tolist()])
    name = "abs" if shift else "abstract"
    rows = [[i + shift, f"t{i}", graph.texts[i]] for i in range(n)]
    write_csv(folder / "node_info.csv", [["paper_id", "title", name], *rows])
    return folder


@pytest.mark.parametrize("shift", [0, 1])
def test_shifted_text_ids_are_found_from_the_texts(tmp_path, shift):
    # In random order: a shift by one gives most nodes the text of another class.
    graph = themed().subgraph(np.random.default_rng(0).permutation(90))
    folder = promptgfm(tmp_path, shift, graph)
    if shift:
        with pytest.warns(ContrastiveWarning, match="shifted back"):
            found, facts = import_promptgfm(folder)
    else:
        found, facts = import_promptgfm(folder)
    assert facts["shift"] == shift
    assert found.texts == graph.texts
    np.testing.assert_array_equal(found.edges, graph.edges)
    best = facts["shifted"] if shift else facts["accuracy of texts as they are"]
    assert best > 0.9


def test_texts_that_say_nothing_of_the_labels_are_pointed_out(tmp_path):
    graph = themed()
    rng = np.random.default_rng(0)
    write_csv(tmp_path / "data.csv", [["paper_id", "label"], *([i, f"c{rng.integers(3)}"] for i in range(90))])
    write_csv(tmp_path / "graph.csv", [["paper_id1", "paper_id2"], [0, 1]])
    rows = [[i, "t", graph.texts[rng.integers(90)]] for i in range(90)]
    write_csv(tmp_path / "node_info.csv", [["paper_id", "title", "abstract"], *rows])
    with pytest.warns(ContrastiveWarning) as notes:
        import_promptgfm(tmp_path)
    assert any("right ids" in str(note.message) for note in notes)


def planetoid(folder, **replaced):
    """Five nodes; nodes 3 and 4 are the test, in the order 4, 3."""
    one = np.eye(2, dtype=np.int32)
    content = {
        "x": csr_matrix(np.eye(2, dtype=np.float32)),
        "y": one[[0, 1]],
        "allx": csr_matrix(np.ones((3, 2), np.float32)),
        "ally": one[[0, 1, 1]],
        "tx": csr_matrix(np.ones((2, 2), np.float32)),
        "ty": one[[0, 1]],
        "graph": {0: [1, 1], 1: [0, 2], 2: [1], 3: [4], 4: [3, 4]},
    }
    for name, value in (content | replaced).items():
        (folder / f"ind.tiny.{name}").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, 2))
    (folder / "ind.tiny.test.index").write_text("4\n3\n")
    return folder


@pytest.mark.filterwarnings("ignore::contrastive_core.errors.ContrastiveWarning")
def test_planetoid_files_are_read_without_running_them(tmp_path):
    write_csv(tmp_path / "texts.csv", [["node_id", "text"], ["4", "four"]])
    graph, facts = import_planetoid(planetoid(tmp_path), tmp_path / "texts.csv")
    assert graph.labels.tolist() == [0, 1, 1, 1, 0]  # the test nodes in the order of their index file
    assert graph.edges.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert graph.texts[4] == "four"
    assert graph.split["train"].tolist() == [0, 1]
    assert graph.split["test"].tolist() == [3, 4]
    assert facts["data set"] == "tiny"
    write_csv(tmp_path / "texts.csv", [["node_id", "text"], ["9", "nine"]])
    with pytest.raises(InputError, match="not there"):
        import_planetoid(tmp_path, tmp_path / "texts.csv")


class _Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch owned",)


def test_planetoid_files_that_ask_for_more_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"refused[\s\S]*system"):
        import_planetoid(planetoid(tmp_path, graph=pickle.dumps(_Evil())))
    assert not (tmp_path / "owned").exists()
    with pytest.raises(InputError, match="refused"):
        import_planetoid(planetoid(tmp_path, ally=b"no pickle"))
    with pytest.raises(InputError, match="fit together"):
        import_planetoid(planetoid(tmp_path, graph=[1, 2]))
    (tmp_path / "ind.tiny.x").unlink()
    with pytest.raises(InputError, match="missing"):
        import_planetoid(tmp_path)


def test_wikics_joins_links_and_tokens(tmp_path):
    masks = [[True, False, False]]
    data = {
        "labels": [0, 1, 1],
        "links": [[1], [2], []],
        "train_masks": masks,
        "val_masks": [[False, True, False]],
        "test_mask": [False, False, True],
    }
    nodes = [{"id": 10 + i, "title": f"T_{i}", "tokens": ["word", str(i)]} for i in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "metadata.json").write_text(json.dumps({"nodes": nodes, "labels": {"0": "Logic", "1": "Chess"}}))
    graph, _ = import_wikics(tmp_path)
    assert graph.texts == ("word 0", "word 1", "word 2")
    assert graph.titles[1] == "T 1"
    assert graph.classes == ("Logic", "Chess")
    assert graph.split["val"].tolist() == [1]
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="WikiCS"):
        import_wikics(tmp_path)


def test_cstag_reads_lists_of_neighbours_and_nothing_else(tmp_path):
    path = tmp_path / "Photo.csv"
    rows = [
        ["text", "label", "category", "neighbour"],
        ["lens, fast", "1", "Lenses", "[1]"],
        ["flash", "0", "Light", "[0]"],
    ]
    write_csv(path, rows)
    graph, _ = import_cstag(tmp_path)
    assert graph.edges.tolist() == [[0, 1]]
    assert graph.classes == ("Light", "Lenses")
    assert graph.labels.tolist() == [1, 0]
    for bad in ("__import__('os')", "[1, 'a']", "3"):
        write_csv(path, [rows[0], ["x", "0", "c", bad]])
        with pytest.raises(InputError, match="neighbours"):
            import_cstag(path)
    write_csv(path, [rows[0], ["x", "0", "c", "[7]"]])
    with pytest.raises(InputError, match="not there"):
        import_cstag(path)


# Samples

INDEX = """Package: a
Source: one (1.0)
Section: science
Description: studies birds
Tag: field::biology
Depends: b (>= 2), libc6 | c:any

Package: b
Section: games
Description: sails ships
 over the
 sea

Package: c
Section: contrib/games
Description: a game
Suggests: d

Package: d
Section: games
Description: of c's source
Source: c

Package: e
Section: science
Description: alone

Package: libc6
Section: libs
Description: not of our sections
"""


def test_a_package_index_becomes_a_graph_by_its_relations():
    graph = debian_graph(INDEX)
    assert graph.ids == ("a", "b", "c")  # d is of the same source as c, e is alone
    assert graph.edges.tolist() == [[0, 1], [0, 2]]
    assert graph.texts[1] == "sails ships over the sea"
    assert [graph.classes[i] for i in graph.labels] == ["science", "games", "games"]
    assert not any("biology" in text or "science" in text for text in graph.texts)


def test_samples_are_connected_repeatable_and_refused_where_there_are_none(tmp_path):
    (tmp_path / "Packages").write_text(INDEX)
    assert len(sample_graph("debian", packages=tmp_path / "Packages", nodes=0)) == 3
    (tmp_path / "Packages").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        sample_graph("debian", packages=tmp_path / "Packages")
    python = python_graph()
    assert len(python) > 20
    assert len(python.classes) >= 2
    assert not any(text.startswith("Topic") for text in python.texts)
    small = sample_graph("python", nodes=40)
    assert 20 <= len(small) <= 40
    assert describe(small)["isolated nodes"] == 0
    assert sample_graph("python", nodes=40).ids == small.ids
