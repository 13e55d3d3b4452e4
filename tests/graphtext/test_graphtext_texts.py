"""Text encoders, their cache, language models and the answers of these: what they give, and what they refuse."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import torch
from cl_graphtext.texts.answers import (
    BadAnswerError,
    LLMSummarizer,
    PrecomputedSummaries,
    load_summarizer,
    parse_answer,
)
from cl_graphtext.texts.cache import TextCache, read_features
from cl_graphtext.texts.encoders import TextSettings, load_encoder, pool
from cl_graphtext.texts.llm import ChatClient, LLMSettings, LocalModel
from contrastive_core.errors import ContrastiveWarning, InputError

from .conftest import Words, chat_server

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
    encoder = load_encoder(TextSettings(model=str(llama), batch=2), device="cpu")
    rows = encoder.encode(["robin", "robin heron nest wing", "", "mast"])
    assert rows.shape == (4, 16)
    np.testing.assert_allclose(encoder.encode(["robin"])[0], rows[0], atol=1e-5)  # padding does not count
    last = load_encoder(TextSettings(model=str(llama), pooling="last"), device="cpu")
    assert last.identity != encoder.identity
    assert not np.allclose(last.encode(["robin heron"]), encoder.encode(["robin heron"]))
    hidden, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]


def test_lora_trains_few_weights_and_changes_the_name_of_the_encoder(llama):
    encoder = load_encoder(TextSettings(model=str(llama), lora=2), device="cpu")
    before, name = encoder.encode(["robin"]), encoder.identity
    trained = encoder.trained()
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    encoder(["robin heron"]).square().sum().backward()
    with torch.no_grad():
        for weight in trained.values():
            weight += 0.5
    assert encoder.identity != name
    assert not np.allclose(encoder.encode(["robin"]), before)
    other = load_encoder(TextSettings(model=str(llama), lora=2), device="cpu")
    other.load_trained(encoder.trained())
    np.testing.assert_allclose(other.encode(["robin"]), encoder.encode(["robin"]), atol=1e-6)
    with pytest.raises(InputError, match="another text model"):
        load_encoder(TextSettings(model=str(llama), lora=4), device="cpu").load_trained(encoder.trained())


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
    np.save(tmp_path / "t.npy", np.array([["a"]]))
    with pytest.raises(InputError, match="do not fit"):
        read_features(tmp_path / "t.npy", 1)
    claim = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }"
    (tmp_path / "c.npy").write_bytes(claim.ljust(127) + b"\n" + bytes(16))
    with pytest.raises(InputError, match="cannot be read"):
        read_features(tmp_path / "c.npy", 3)
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


@pytest.mark.parametrize(
    "text",
    [
        '<think>I should answer {"summary": "?"}.</think>\n{"summary": "A dog."}',
        'I should say {"summary": "?"}.</think>{"summary": "A dog."}',
        '{"summary": "A dog."}\nHope this helps {smile}',
        'Use {braces}. {"summary": "A dog."}',
        '```json\n{"summary": "A dog."}\n```\n{"note": 1}',
        '{"summary": "A cat."} No: {"summary": "A dog.", "keywords": null, "label": null}',
        '{"summary": "A dog.", "rationale": {"summary": "nested"}}',
    ],
)
def test_the_last_object_with_a_summary_is_the_answer_whatever_stands_around_it(text):
    assert parse_answer(text).summary == "A dog."


def test_thoughts_alone_and_endless_braces_are_no_answer():
    for text in ('<think>{"summary": "A dog."}', "{" * 50_000, '{"summary":' * 5_000, '{"summary": "a", "label": [1]}'):
        with pytest.raises(BadAnswerError):
            parse_answer(text)


def test_half_characters_end_no_run_that_was_paid_for(tmp_path):
    answer = '{"summary": "A dog \\ud83d", "keywords": ["\\ud83d"]}'
    summarizer = LLMSummarizer(lambda prompt: answer, "m", cache=tmp_path)
    assert summarizer.summarise(["n"], ["cut \ud83d"]) == ["A dog \ufffd"]
    assert summarizer.answers["n"].keywords == ("\ufffd",)
    again = LLMSummarizer(lambda prompt: "asked again", "m", cache=tmp_path)
    assert again.summarise(["n"], ["cut \ud83d"]) == ["A dog \ufffd"]
    encoder = Words()
    assert TextCache(tmp_path / "c").embed(encoder, ["robin \ud83d"]).shape == (1, 16)


def test_a_kept_answer_that_cannot_be_used_is_asked_for_again(tmp_path):
    first = LLMSummarizer(lambda prompt: GOOD, "m", cache=tmp_path)
    assert first.answer("p").label == "Birds"
    named = LLMSummarizer(lambda prompt: '{"summary": "new", "label": "ships"}', "m", cache=tmp_path, labels=["ships"])
    assert named.answer("p").summary == "new"
    path = next(tmp_path.rglob("*.json"))
    path.write_text("[1]")
    assert first.answer("p").summary == "A bird."


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
        ([(200, b'{"choices":[{"message":{"content":"caf\xe9"}}]}')], 2, "malformed JSON"),
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


def test_a_server_says_how_long_to_wait_and_whole_answers_have_a_time_limit():
    with chat_server([(429, "later", {"Retry-After": "0"}), chat(GOOD)]) as (url, asked, _):
        start = time.monotonic()
        assert ChatClient(url, "m", timeout=5, pause=30)("p") == GOOD  # its word counts, not ours
        assert time.monotonic() - start < 5
    with chat_server([(503, "later", {"Retry-After": "3600"})]) as (url, asked, _):
        with pytest.raises(InputError, match="wait 3600 s"):
            ChatClient(url, "m", timeout=5, pause=0.01)("p")
        assert len(asked) == 1
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)
    with chat_server([(503, "later", {"Retry-After": date}), chat(GOOD)]) as (url, asked, _):
        assert ChatClient(url, "m", timeout=5, pause=30)("p") == GOOD
    with chat_server([(200, "x" * 40, {"slow": "0.05"})]) as (url, asked, _):  # a byte now and then
        start = time.monotonic()
        with pytest.raises(InputError, match="in time"):
            ChatClient(url, "m", timeout=0.3, attempts=1)("p")
        assert time.monotonic() - start < 1.5


def test_answers_of_parts_are_joined_and_refusals_are_bad_answers():
    parts = [{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "bird"}]
    with chat_server([chat(parts), chat(None), chat(GOOD)]) as (url, asked, _):
        client = ChatClient(url, "m", timeout=5)
        assert client("p") == "A bird"
        assert LLMSummarizer(client, "m").summarise(["n"], ["p"]) == ["A bird."]
        assert len(asked) == 3


@pytest.mark.parametrize(
    ("surroundings", "options", "text"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, {}, "PROXY"),
        ({"NO_PROXY": "localhost,[::1]"}, {}, "PROXY"),
        ({"SSL_CERT_FILE": "/nonexistent.pem"}, {}, "SSL_CERT_FILE"),
        ({}, {"key": "sk\u2013secret"}, "API key"),
        ({}, {"url": "http://[::1/v1"}, "--llm.url"),
        ({}, {"url": "localhost:8000/v1"}, "http://HOST"),
        ({}, {"url": "ftp://host/v1"}, "http://HOST"),
    ],
)
def test_surroundings_that_let_no_client_start_are_named(monkeypatch, surroundings, options, text):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        ChatClient(options.pop("url", "http://127.0.0.1:9/v1"), "m", attempts=1, **options)("p")
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


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
    path.write_text('{"node_id": 0, "summary": "zero\u2028"}\n')
    assert PrecomputedSummaries(path).texts == {"0": "zero\u2028"}
    for bad in ('{"node_id": 1}', '{"node_id": true, "summary": "x"}', "[1]", '{"node_id": 1, "summary": 0}', "{"):
        path.write_text(bad + "\n")
        with pytest.raises(InputError, match="line 1"):
            PrecomputedSummaries(path)
    path.write_text('{"node_id": 1, "summary": "a"}\n{"node_id": "1", "summary": "b"}\n')
    with pytest.raises(InputError, match="twice"):
        PrecomputedSummaries(path)
    assert load_summarizer(LLMSettings()) is None
    with pytest.raises(InputError, match="model"):
        LLMSettings(url="http://localhost")
    with pytest.raises(InputError, match="file or from a model"):
        LLMSettings(answers=path, model="m")
