"""Language models that turn a prompt into a summary: over HTTP, on this machine, or from a file."""

import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import httpx
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_json, write_json

INSTRUCTION = (
    "You summarise one item of a collection. Answer with one JSON object and nothing else, with the keys "
    '"summary" (two sentences), "keywords" (five strings), "rationale" (one sentence) and, if the item ends in a '
    'question, "label" (the choice that fits best, spelt as given).'
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a language model made of a prompt.

    Attributes:
        summary: What is encoded in place of the prompt.
        keywords: Its keywords.
        rationale: Its reason.
        label: The class it would choose; looked at, never encoded. None if it named none.
    """

    summary: str
    keywords: tuple[str, ...] = ()
    rationale: str = ""
    label: str | None = None


@runtime_checkable
class Summarizer(Protocol):
    """What stands between prompts and the prompt encoder."""

    def summarise(self, ids: Sequence[str], prompts: Sequence[str]) -> list[str]:
        """One text a node."""


class BadAnswerError(ValueError):
    """The model answered, but not what it was asked for."""


def parse_answer(text: str, labels: Sequence[str] = ()) -> Answer:
    """Read an answer; text around the JSON object, such as a code fence, is ignored.

    Args:
        text: What the model said.
        labels: Labels it may name.

    Raises:
        BadAnswerError: There is no JSON object with a summary, or its label is none of those.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except json.JSONDecodeError as error:
        raise BadAnswerError(f"malformed JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("summary"), str) or not value["summary"].strip():
        raise BadAnswerError("no JSON object with a summary")
    keywords = value.get("keywords") or []
    if not isinstance(keywords, list):
        raise BadAnswerError("keywords are no list")
    label = value.get("label")
    known = {_plain(name): name for name in labels}
    if label is not None and known and _plain(str(label)) not in known:
        raise BadAnswerError(f"a wrong label: {label!r}")
    return Answer(
        " ".join(value["summary"].split()),
        tuple(str(word) for word in keywords),
        str(value.get("rationale") or ""),
        None if label is None else known.get(_plain(str(label)), str(label)),
    )


@dataclasses.dataclass(frozen=True)
class LLMSettings:
    """A language model that summarises prompts; none if neither is given.

    Attributes:
        url: Base address of an OpenAI-compatible server, such as ``http://localhost:8000/v1``.
        model: Model id on that server; or, without a url, a local folder or hub id of a causal model.
        answers: .jsonl file of answers computed elsewhere, with ``node_id`` and ``summary`` a line.
        key_variable: Environment variable that holds the API key, if the server wants one.
        timeout: Seconds waited for an answer.
        attempts: Tries a prompt, after timeouts, errors of the server and bad answers.
        new_tokens: Longest answer.
    """

    url: str | None = None
    model: str | None = None
    answers: Path | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    attempts: int = 3
    new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.answers is not None and (self.url or self.model):
            raise InputError("answers come from a file or from a model", where="--llm.answers, --llm.url, --llm.model")
        if self.url is not None and not self.model:
            raise InputError("a server needs the name of a model", where="--llm.model")
        if self.timeout <= 0 or self.attempts < 1 or self.new_tokens < 1:
            raise InputError(
                "the options are positive",
                where="--llm.timeout, --llm.attempts, --llm.new-tokens",
                why=f"got {self.timeout}, {self.attempts}, {self.new_tokens}",
            )


class ChatClient:
    """An OpenAI-compatible server: ``POST {url}/chat/completions`` at temperature 0.

    Args:
        url: Base address.
        model: Model id.
        key: API key, sent as a bearer token.
        timeout: Seconds.
        attempts: Tries, with a pause that doubles.
        new_tokens: Longest answer.
        pause: Seconds before the second try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        attempts: int = 3,
        new_tokens: int = 256,
        pause: float = 1.0,
    ) -> None:
        self.url, self.model, self.attempts, self.pause = url.rstrip("/"), model, attempts, pause
        self.new_tokens = new_tokens
        self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})

    def __call__(self, prompt: str) -> str:
        """One answer.

        Raises:
            InputError: The server does not answer in time, refuses, or answers something else.
        """
        why = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=self._body(prompt))
            except httpx.TimeoutException:
                why = "it did not answer in time"
                continue
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
                continue
            if response.status_code == 429 or response.status_code >= 500:
                why = f"status {response.status_code}"
                continue
            if response.status_code != 200:
                why = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
                break
            try:
                return str(response.json()["choices"][0]["message"]["content"])
            except (json.JSONDecodeError, KeyError, IndexError, TypeError):
                why = "malformed JSON"
        raise InputError(
            "the language model gave no answer",
            where=self.url,
            why=f"{why}, {attempt + 1} tries",
            remedy="check --llm.url, --llm.model and the key, or raise --llm.timeout; answers so far are kept",
        )

    def _body(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.new_tokens}


class LocalModel:
    """A causal language model of transformers on this machine, decoded greedily.

    Args:
        path: Local folder or hub id.
        new_tokens: Longest answer.

    Raises:
        InputError: The model cannot be loaded.
    """

    def __init__(self, path: str, *, new_tokens: int = 256) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.lm: Any = AutoModelForCausalLM.from_pretrained(path).eval()
        except Exception as error:  # hubs and broken folders fail in many ways
            raise InputError(
                "the language model cannot be loaded",
                where=f"--llm.model {path}",
                why=" ".join(str(error).split())[:300],
                remedy="check the folder; a hub id needs network access: pass a local folder instead",
            ) from error
        self.model, self.new_tokens = path, new_tokens

    def __call__(self, prompt: str) -> str:
        """One answer."""
        import torch

        if self.tokenizer.chat_template:
            messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{INSTRUCTION}\n\n{prompt}\n\n"
        found = self.tokenizer(text, return_tensors="pt")
        room = getattr(self.lm.config, "max_position_embeddings", 1 << 20) - self.new_tokens
        found = {name: found[name][:, -room:] for name in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        with torch.no_grad():
            out = self.lm.generate(**found, max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=pad)
        return str(self.tokenizer.decode(out[0, found["input_ids"].shape[1] :], skip_special_tokens=True))


class LLMSummarizer:
    """Summaries by a language model, each kept under the SHA-256 of prompt and model.

    A bad answer (malformed JSON, a label that is none) is asked for again; in the end the prompt itself stands in, with
    a note how often that was so.

    Args:
        complete: The model: a prompt to an answer.
        model: Its id, part of the key.
        cache: Folder of answers; in memory alone if absent.
        labels: Labels an answer may name.
        attempts: Answers asked for a prompt.
    """

    def __init__(
        self,
        complete: Callable[[str], str],
        model: str,
        *,
        cache: Path | None = None,
        labels: Sequence[str] = (),
        attempts: int = 3,
    ) -> None:
        self.complete, self.model, self.cache, self.labels = complete, model, cache, labels
        self.attempts = attempts
        self.answers: dict[str, Answer] = {}

    def summarise(self, ids: Sequence[str], prompts: Sequence[str]) -> list[str]:
        """One text a node: the summary, or the prompt where the model gave none."""
        found, failed = [], 0
        for name, prompt in zip(ids, prompts, strict=True):
            answer = self.answer(prompt)
            failed += answer is None
            found.append(prompt if answer is None else answer.summary)
            if answer is not None:
                self.answers[name] = answer
        if failed:
            warnings.warn(
                f"{self.model}: {failed} of {len(ids)} answers could not be used; the prompts stand in for them",
                ContrastiveWarning,
                stacklevel=2,
            )
        return found

    def answer(self, prompt: str) -> Answer | None:
        """The answer to one prompt, from the cache if it is there; None if the model gives no usable one."""
        key = hashlib.sha256(f"{self.model}\n{prompt}".encode()).hexdigest()
        path = None if self.cache is None else self.cache / key[:2] / f"{key}.json"
        if path is not None and path.is_file():
            text = str(read_json(path)["answer"])
            return parse_answer(text, self.labels)
        asked = prompt
        for _ in range(self.attempts):
            text = self.complete(asked)
            try:
                answer = parse_answer(text, self.labels)
            except BadAnswerError as error:
                asked = f"{prompt}\n(The last answer could not be used: {error}. Answer with the JSON object alone.)"
                continue
            if path is not None:
                write_json(path, {"model": self.model, "answer": text})
            return answer
        return None


class PrecomputedSummaries:
    """Summaries from a .jsonl file, by node id.

    Args:
        path: The file, one object a line with ``node_id`` and ``summary``.

    Raises:
        InputError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("the answers cannot be read", where=path, why=str(error)) from error
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line) if line.strip() else None
                if value is not None:
                    self.texts[str(value["node_id"])] = str(value["summary"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InputError(
                    "the answers cannot be read",
                    where=f"{path}, line {number}",
                    why=f"malformed JSON or a missing key: {error}",
                    remedy='write one {"node_id": ..., "summary": ...} a line',
                ) from error

    def summarise(self, ids: Sequence[str], prompts: Sequence[str]) -> list[str]:
        """The summary of every node.

        Raises:
            InputError: A node has none.
        """
        missing = [name for name in ids if name not in self.texts]
        if missing:
            raise InputError(
                "the answers lack nodes",
                where=self.path,
                why=f"{len(missing)} of {len(ids)}, for instance {missing[0]}",
            )
        return [self.texts[name] for name in ids]


def load_summarizer(
    settings: LLMSettings, *, labels: Sequence[str] = (), cache: Path | None = None
) -> Summarizer | None:
    """The summarizer the settings name; None if they name none."""
    if settings.answers is not None:
        return PrecomputedSummaries(settings.answers)
    if settings.model is None:
        return None
    complete: Callable[[str], str]
    if settings.url is not None:
        complete = ChatClient(
            settings.url,
            settings.model,
            key=os.environ.get(settings.key_variable),
            timeout=settings.timeout,
            attempts=settings.attempts,
            new_tokens=settings.new_tokens,
        )
    else:
        complete = LocalModel(settings.model, new_tokens=settings.new_tokens)
    return LLMSummarizer(complete, settings.model, cache=cache, labels=labels, attempts=settings.attempts)


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())
