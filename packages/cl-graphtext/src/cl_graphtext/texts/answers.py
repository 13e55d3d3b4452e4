"""What is made of a language model's answers: summaries, read strictly, asked for again, and kept."""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import read_json, read_json_lines, write_json

from cl_graphtext.texts.llm import ChatClient, LLMSettings, LocalModel
from cl_graphtext.texts.reading import id_of, mended

INSTRUCTION = (
    "You summarise one item of a collection. Answer with one JSON object and nothing else, with the keys "
    '"summary" (two sentences), "keywords" (five strings), "rationale" (one sentence) and, if the item ends in a '
    'question, "label" (the choice that fits best, spelt as given).'
)

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_REST_OF_THOUGHT = re.compile(r".*</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_MOST_BRACES = 200


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
    """Read an answer: the last JSON object with a summary that parses, after what the model thought.

    Text around it, such as reasoning in ``<think>`` marks, a code fence or a closing remark, is ignored.

    Args:
        text: What the model said.
        labels: Labels it may name.

    Raises:
        BadAnswerError: There is no JSON object with a summary, or its label is none of those.

    Example:
        >>> parse_answer('<think>{"summary": "?"}</think> {"summary": "A dog."} I hope {this} helps.').summary
        'A dog.'
    """
    said = _REST_OF_THOUGHT.sub("", _THOUGHT.sub("", text))
    value = next((each for each in reversed(list(_objects(said))) if "summary" in each), None)
    if value is None:
        raise BadAnswerError("malformed JSON, or no JSON object with a summary")
    summary, label = value["summary"], value.get("label")
    if not isinstance(summary, str) or not summary.strip():
        raise BadAnswerError("the summary is no text")
    words = value.get("keywords")
    words = [] if words is None else words
    if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
        raise BadAnswerError("keywords are no list of texts")
    if label is not None and not isinstance(label, str | int):
        raise BadAnswerError("the label is no text")
    known = {_plain(name): name for name in labels}
    if label is not None and known and _plain(str(label)) not in known:
        raise BadAnswerError(f"a wrong label: {label!r}")
    rationale = value.get("rationale")
    return Answer(
        mended(" ".join(summary.split())),
        tuple(mended(str(word)) for word in words),
        mended(rationale) if isinstance(rationale, str) else "",
        None if label is None else known.get(_plain(str(label)), mended(str(label))),
    )


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a text that are not part of another one."""
    decoder, place, tries = json.JSONDecoder(), text.find("{"), 0
    while place >= 0 and tries < _MOST_BRACES:
        tries += 1
        try:
            value, end = decoder.raw_decode(text, place)
        except RecursionError:  # brackets without end
            return
        except ValueError:
            end = place + 1
        else:
            yield value
        place = text.find("{", end)


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
        summaries, failed = [], 0
        for name, prompt in zip(ids, prompts, strict=True):
            answer = self.answer(prompt)
            failed += answer is None
            summaries.append(mended(prompt) if answer is None else answer.summary)
            if answer is not None:
                self.answers[name] = answer
        if failed:
            warnings.warn(
                f"{self.model}: {failed} of {len(ids)} answers could not be used; the prompts stand in for them",
                ContrastiveWarning,
                stacklevel=2,
            )
        return summaries

    def answer(self, prompt: str) -> Answer | None:
        """The answer to one prompt, from the cache if it is there; None if the model gives no usable one."""
        prompt = mended(prompt)
        key = hashlib.sha256(f"{self.model}\n{prompt}".encode()).hexdigest()
        path = None if self.cache is None else self.cache / key[:2] / f"{key}.json"
        kept = self._kept(path)
        if kept is not None:
            return kept
        asked = prompt
        for _ in range(self.attempts):
            text = mended(self.complete(asked))
            try:
                answer = parse_answer(text, self.labels)
            except BadAnswerError as error:
                asked = f"{prompt}\n(The last answer could not be used: {error}. Answer with the JSON object alone.)"
                continue
            if path is not None:
                write_json(path, {"model": self.model, "answer": text})
            return answer
        return None

    def _kept(self, path: Path | None) -> Answer | None:
        """A kept answer that can still be used; a damaged file, or one that names another class, is asked for anew."""
        if path is None or not path.is_file():
            return None
        try:
            value = read_json(path)
            return parse_answer(value["answer"], self.labels)
        except (InputError, BadAnswerError, KeyError, TypeError):
            return None


class PrecomputedSummaries:
    """Summaries from a .jsonl file, by node id.

    Args:
        path: The file, one object a line with ``node_id`` and ``summary``.

    Raises:
        InputError: The file cannot be read, or names a node twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        for number, value in read_json_lines(path):
            where = f"{path}, line {number}"
            if not isinstance(value, dict) or "node_id" not in value or not isinstance(value.get("summary"), str):
                raise InputError(
                    "an answer cannot be read",
                    where=where,
                    why="node_id is missing, or summary is no text",
                    remedy='write one {"node_id": ..., "summary": ...} a line',
                )
            name = id_of(value["node_id"], where)
            if name in self.texts:
                raise InputError("a node is answered twice", where=where, why=f"got {name}")
            self.texts[name] = mended(value["summary"])

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
    settings: LLMSettings, *, labels: Sequence[str] = (), cache: Path | None = None, device: str = "auto"
) -> Summarizer | None:
    """The summarizer the settings name; None if they name none.

    Args:
        settings: A server, a local model, or a file of answers.
        labels: Labels an answer may name.
        cache: Folder of answers.
        device: Torch device of a local model.
    """
    if settings.answers is not None:
        return PrecomputedSummaries(settings.answers)
    if settings.model is None:
        return None
    complete: Callable[[str], str]
    if settings.url is None:
        complete = LocalModel(settings.model, new_tokens=settings.new_tokens, instruction=INSTRUCTION, device=device)
    else:
        complete = ChatClient(
            settings.url,
            settings.model,
            key=settings.key(),
            timeout=settings.timeout,
            attempts=settings.attempts,
            new_tokens=settings.new_tokens,
            instruction=INSTRUCTION,
        )
    return LLMSummarizer(complete, settings.model, cache=cache, labels=labels, attempts=settings.attempts)


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())
