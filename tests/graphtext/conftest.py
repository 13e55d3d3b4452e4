import contextlib
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from cl_graphtext.graphs.graph import build, undirected
from cl_graphtext.graphs.reading import write_graph

THEMES = {
    "birds": ["robin", "heron", "sparrow", "feather", "nest", "wing", "beak", "egg", "migration", "flock"],
    "ships": ["hull", "mast", "anchor", "harbour", "keel", "sail", "cargo", "deck", "rudder", "captain"],
    "music": ["violin", "chord", "tempo", "melody", "sonata", "harp", "tuning", "octave", "rhythm", "choir"],
}


def themed(n=90, seed=0, homophilic=4):
    """Three classes whose texts share words and whose links stay mostly inside."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    names = list(THEMES)
    texts = [" ".join(rng.choice(THEMES[names[c]], 7)) + " item" for c in labels]
    edges = []
    for node in range(n):
        mine = np.flatnonzero(labels == labels[node])
        edges += [(node, other) for other in rng.choice(mine[mine != node], homophilic // 2, replace=False)]
    return build(
        ids=[f"n{i}" for i in range(n)],
        texts=texts,
        titles=[f"title {i}" for i in range(n)],
        labels=labels,
        classes=names,
        edges=undirected(np.array(edges)),
        noun="article",
        where="test",
    )


@pytest.fixture(scope="session")
def graph():
    return themed()


@pytest.fixture(scope="session")
def features(graph):
    """Noisy class centres: what a text model would give."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=draw)
    return centres[torch.from_numpy(graph.labels)] + 0.7 * torch.randn(len(graph), 16, generator=draw)


def _tokenizer(folder, words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *sorted(set(words))])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A tiny causal language model with random weights, as transformers save it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    size = _tokenizer(folder, [*THEMES, *(word for words in THEMES.values() for word in words)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Words:
    """An encoder of known widths: counts of theme words, so that cosines can be told by hand."""

    def __init__(self, name="words", dim=16):
        self.identity, self.dim, self.calls = name, dim, 0
        self.place = {word: i % dim for i, word in enumerate(w for words in THEMES.values() for w in words)}

    def encode(self, texts):
        self.calls += 1
        out = np.full((len(texts), self.dim), 0.01, np.float32)
        for row, text in enumerate(texts):
            for word in text.replace(",", " ").split():
                if word in self.place:
                    out[row, self.place[word]] += 1
        return out


@contextmanager
def chat_server(answers):
    """A server that gives the answers in turn (the last one again and again) and remembers what it was asked.

    An answer is a number of seconds to stay silent, or a status, a body and perhaps headers; ``slow`` among these is
    the pause before each byte.
    """
    asked, headers = [], []
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            headers.append(dict(self.headers))
            answer = answers[min(len(asked), len(answers)) - 1]
            if isinstance(answer, float):
                stop.wait(answer)
                return
            status, body, more = (*answer, {})[:3]
            body = body if isinstance(body, bytes) else body.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in [body] if "slow" not in more else [bytes([byte]) for byte in body]:
                if stop.wait(float(more.get("slow", 0))):
                    return
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    assert server.socket.family == socket.AF_INET
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked, headers
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def tiny_promptgnn_sim(folder):
    """A folder with a graph of 30 nodes, and embeddings of their texts beside it, so that no text model is needed."""
    graph = themed(30)
    write_graph(graph, folder / "data")
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=draw)
    x = centres[torch.from_numpy(graph.labels)] + 0.7 * torch.randn(30, 16, generator=draw)
    np.save(folder / "data.npy", x.numpy())
    return folder / "data"
