"""Graphs, readers, noise, text caches and language models: what they read, and what they refuse."""

import csv
import gzip
import json
import pickle

import numpy as np
import pytest
import torch
from cl_graphtext.graph import both_directions, build, describe, from_data, full_texts, random_split, undirected
from cl_graphtext.importers import import_cstag, import_planetoid, import_promptgfm, import_wikics
from cl_graphtext.llm import (
    BadAnswerError,
    ChatClient,
    LLMSettings,
    LLMSummarizer,
    LocalModel,
    PrecomputedSummaries,
    load_summarizer,
    parse_answer,
)
from cl_graphtext.perturb import KINDS, graph_perturb, parse_perturbation
from cl_graphtext.reading import extend_graph, read_graph, write_graph
from cl_graphtext.samples import debian_graph, python_graph, sample_graph
from cl_graphtext.text import TextCache, TextSettings, load_encoder, pool, read_features
from contrastive_core.errors import ContrastiveWarning, InputError
from scipy.sparse import csr_matrix
from torch_geometric.data import Data

from .conftest import THEMES, Words, chat_server, themed


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
    with pytest.raises(InputError, match="already"):
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
        (b"node_id,text\na,x\n", b"from,to\na,a\n", "column is missing"),
        (b"node_id,text,text\na,x,y\n", b"src,dst\n", "twice"),
        (b"node_id,text\na,x\na,y\n", b"src,dst\n", "twice"),
        (b"node_id,text\n", b"src,dst\n", "no nodes"),
        (b"", b"", "no nodes"),
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
    with pytest.raises(InputError, match="cannot be read"):
        sample_graph("debian", packages=tmp_path / "Packages")
    python = python_graph()
    assert len(python) > 20
    assert len(python.classes) >= 2
    assert not any(text.startswith("Topic") for text in python.texts)
    small = sample_graph("python", nodes=40)
    assert 20 <= len(small) <= 40
    assert describe(small)["isolated nodes"] == 0
    assert sample_graph("python", nodes=40).ids == small.ids


# Text encoders and their cache


def test_each_text_is_encoded_once_and_empty_ones_never(tmp_path):
    encoder, cache = Words(), TextCache(tmp_path)
    first = cache.embed(encoder, ["robin heron", "", "mast", "robin heron"])
    assert cache.encoded == 2
    assert torch.equal(first[0], first[3])
    assert first[1].abs().sum() == 0
    again = TextCache(tmp_path)
    assert torch.equal(again.embed(Words(), ["mast", "robin heron"]), first[[2, 0]])
    assert again.encoded == 0
    again.embed(Words(name="other"), ["mast"])
    assert again.encoded == 1


def test_a_cache_of_another_width_or_damaged_is_refused(tmp_path):
    TextCache(tmp_path).embed(Words(), ["mast"])
    with pytest.raises(InputError, match="another width"):
        TextCache(tmp_path).embed(Words(dim=5), ["mast"])
    shard = next(tmp_path.rglob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        TextCache(tmp_path).embed(Words(), ["mast"])


def test_a_transformers_model_is_pooled_over_its_own_tokens(llama):
    encoder = load_encoder(TextSettings(model=str(llama), batch=2, device="cpu"))
    rows = encoder.encode(["robin", "robin heron nest wing", "", "mast"])
    assert rows.shape == (4, 16)
    np.testing.assert_allclose(encoder.encode(["robin"])[0], rows[0], atol=1e-5)  # padding does not count
    last = load_encoder(TextSettings(model=str(llama), pooling="last", device="cpu"))
    assert last.identity != encoder.identity
    assert not np.allclose(last.encode(["robin heron"]), encoder.encode(["robin heron"]))
    hidden, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]


def test_lora_trains_few_weights_and_changes_the_name_of_the_encoder(llama):
    encoder = load_encoder(TextSettings(model=str(llama), lora=2, device="cpu"))
    before, name = encoder.encode(["robin"]), encoder.identity
    trained = encoder.trained()
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    encoder(["robin heron"]).square().sum().backward()
    with torch.no_grad():
        for weight in trained.values():
            weight += 0.5
    assert encoder.identity != name
    assert not np.allclose(encoder.encode(["robin"]), before)
    other = load_encoder(TextSettings(model=str(llama), lora=2, device="cpu"))
    other.load_trained(encoder.trained())
    np.testing.assert_allclose(other.encode(["robin"]), encoder.encode(["robin"]), atol=1e-6)
    with pytest.raises(InputError, match="another text model"):
        load_encoder(TextSettings(model=str(llama), lora=4, device="cpu")).load_trained(encoder.trained())


def test_models_and_features_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(TextSettings(model=str(tmp_path / "model")))
    with pytest.raises(InputError, match=r"--text\.max-tokens"):
        TextSettings(max_tokens=0)
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    assert read_features(tmp_path / "x.npy", 3).shape == (3, 4)
    with pytest.raises(InputError, match="3, 4"):
        read_features(tmp_path / "x.npy", 5)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_features(tmp_path / "o.npy", 1)


# Language models

GOOD = json.dumps({"summary": "A bird.", "keywords": ["wing"], "rationale": "It flies.", "label": "Birds"})


def chat(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


def test_answers_are_read_strictly():
    answer = parse_answer(f"```json\n{GOOD}\n```", ["birds", "ships"])
    assert (answer.summary, answer.label, answer.keywords) == ("A bird.", "birds", ("wing",))
    for bad in ("no json", '{"summary": 3}', '{"summary": "x", "keywords": 1}', "{'a': 1}", '{"summary": " "}'):
        with pytest.raises(BadAnswerError):
            parse_answer(bad)
    with pytest.raises(BadAnswerError, match="wrong label"):
        parse_answer(GOOD, ["ships"])


def test_a_server_is_asked_once_a_prompt_and_its_bad_answers_again(tmp_path, monkeypatch):
    wrong = json.dumps({"summary": "x", "label": "planes"})
    with chat_server([chat("sorry"), chat(wrong), chat(GOOD)]) as (url, asked, headers):
        monkeypatch.setenv("SOME_KEY", "secret")
        settings = LLMSettings(url=url, model="m", key_variable="SOME_KEY", timeout=5)
        summarizer = load_summarizer(settings, labels=["birds"], cache=tmp_path)
        assert summarizer.summarise(["n"], ["a prompt"]) == ["A bird."]
        assert len(asked) == 3
        body = json.loads(asked[0])
        assert (body["model"], body["temperature"], body["messages"][1]["content"]) == ("m", 0, "a prompt")
        assert "wrong label" in json.loads(asked[2])["messages"][1]["content"]
        assert headers[0]["Authorization"] == "Bearer secret"
        again = load_summarizer(settings, labels=["birds"], cache=tmp_path)
        assert again.summarise(["n"], ["a prompt"]) == ["A bird."]
        assert again.answers["n"].label == "birds"
        assert len(asked) == 3
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_a_model_that_never_answers_well_leaves_the_prompt(tmp_path):
    with chat_server([chat("{broken")]) as (url, asked, _):
        summarizer = LLMSummarizer(ChatClient(url, "m", timeout=5), "m", cache=tmp_path, attempts=2)
        with pytest.warns(ContrastiveWarning, match="1 of 1"):
            assert summarizer.summarise(["n"], ["a prompt"]) == ["a prompt"]
        assert len(asked) == 2
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("answers", "tries", "text"),
    [
        ([5.0], 2, "in time"),
        ([(500, "busy")], 2, "status 500"),
        ([(429, "slow down")], 2, "429"),
        ([(401, "no key")], 1, "401: no key"),
        ([(200, "<html>")], 2, "malformed JSON"),
        ([(200, '{"choices": []}')], 2, "malformed JSON"),
    ],
)
def test_a_server_that_fails_is_tried_again_and_then_named(answers, tries, text):
    with chat_server(answers) as (url, asked, _):
        client = ChatClient(url, "m", timeout=0.2, attempts=2, pause=0.01)
        with pytest.raises(InputError, match=text) as caught:
            client("a prompt")
        assert len(asked) == tries
        assert url in str(caught.value)


def test_a_server_that_recovers_is_heard():
    with chat_server([(503, "wait"), chat(GOOD)]) as (url, asked, _):
        assert ChatClient(url, "m", timeout=5, pause=0.01)("p") == GOOD
        assert len(asked) == 2
    with pytest.raises(InputError, match="no answer"):
        ChatClient("http://127.0.0.1:9/v1", "m", timeout=1, attempts=1)("p")


def test_a_local_model_speaks_and_its_nonsense_is_noted(llama):
    model = LocalModel(str(llama), new_tokens=5)
    assert model("robin heron") == model("robin heron")
    with pytest.warns(ContrastiveWarning, match="1 of 1"):
        assert LLMSummarizer(model, "tiny", attempts=1).summarise(["n"], ["robin heron"]) == ["robin heron"]
    with pytest.raises(InputError, match="cannot be loaded"):
        LocalModel(str(llama / "missing"))


def test_answers_from_a_file_must_be_complete(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"node_id": 1, "summary": "one"}\n\n{"node_id": "b", "summary": "two"}\n')
    source = load_summarizer(LLMSettings(answers=path))
    assert source.summarise(["b", "1"], ["", ""]) == ["two", "one"]
    with pytest.raises(InputError, match="lack nodes"):
        source.summarise(["c"], [""])
    path.write_text('{"node_id": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        PrecomputedSummaries(path)
    assert load_summarizer(LLMSettings()) is None
    with pytest.raises(InputError, match="model"):
        LLMSettings(url="http://localhost")
    with pytest.raises(InputError, match="file or from a model"):
        LLMSettings(answers=path, model="m")


def test_the_themes_of_the_tests_are_distinct():
    words = [word for theme in THEMES.values() for word in theme]
    assert len(set(words)) == len(words)
