"""Language models that answer prompts: over HTTP, or on this machine."""

import dataclasses
import json
import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError, reason, require

from cl_graphtext.texts.encoders import loading
from cl_graphtext.texts.reading import mended

_LARGEST = 1 << 24
"""Bytes of an answer beyond which it is none."""


@dataclasses.dataclass(frozen=True)
class LLMSettings:
    """A language model that summarises prompts; none if neither is given.

    Attributes:
        url: Base address of an OpenAI-compatible server, such as ``http://localhost:8000/v1``.
        model: Model id on that server; or, without a url, a local folder or hub id of a causal model.
        answers: .jsonl file of answers computed elsewhere, with ``node_id`` and ``summary`` a line.
        key_variable: Environment variable that holds the API key, if the server wants one.
        timeout: Seconds a whole answer may take; a prompt takes at most ``attempts`` times as long, pauses included.
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
        require(0 < self.timeout <= 86_400, "--llm.timeout", self.timeout, "seconds, above 0 and at most a day")
        require(1 <= self.attempts <= 1000, "--llm.attempts", self.attempts, "a whole number from 1 to 1000")
        require(1 <= self.new_tokens <= 1 << 20, "--llm.new-tokens", self.new_tokens, "a whole number, at least 1")

    def key(self) -> str | None:
        """The API key, from the environment."""
        return os.environ.get(self.key_variable)


class ChatClient:
    """An OpenAI-compatible server: ``POST {url}/chat/completions`` at temperature 0.

    A server that is busy is asked again after the pause it asks for, or one that doubles.

    Args:
        url: Base address.
        model: Model id.
        key: API key, sent as a bearer token.
        timeout: Seconds a whole answer may take; a prompt takes at most ``attempts`` times as long, pauses included.
        attempts: Tries.
        new_tokens: Longest answer.
        instruction: What it is told before every prompt.
        pause: Seconds before the second try.

    Raises:
        InputError: The address or the key cannot be used, or the surroundings (proxies, certificates) are set up
            wrongly.
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
        instruction: str = "",
        pause: float = 1.0,
    ) -> None:
        self.url, self.model, self.timeout, self.attempts, self.pause = url.rstrip("/"), model, timeout, attempts, pause
        self.new_tokens, self.instruction = new_tokens, instruction
        self._check_url()
        key = None if key is None else key.strip()
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(
                "the API key cannot be sent",
                where="the environment variable of --llm.key-variable",
                why="it holds a character that no key has",
                remedy="copy the key again",
            )
        try:
            self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})
        except Exception as error:  # what the environment says of proxies and certificates fails in many ways
            raise InputError(
                "the connection to the language model cannot be set up",
                where=self.url,
                why=reason(error),
                remedy="check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR",
            ) from error

    def __call__(self, prompt: str) -> str:
        """One answer.

        Raises:
            InputError: The server does not answer in time, refuses, or answers something else.
        """
        why, attempt, end = "", 0, time.monotonic() + self.attempts * self.timeout
        for attempt in range(1, self.attempts + 1):
            status, body, wait = self._ask(prompt)
            if status == 200:
                answer = _content(body)
                if answer is not None:
                    return mended(answer)
                why = "malformed JSON"
            elif status:
                said = " ".join(body.decode(errors="replace").split())[:200]
                why = f"status {status}" + (f": {said}" if said else "")
                if status not in (408, 409, 425, 429) and status < 500:
                    break
            else:
                why = body.decode(errors="replace")
            wait = self.pause * 2 ** (attempt - 1) if wait is None else wait
            if attempt < self.attempts:
                if time.monotonic() + wait > end:
                    why += f"; it asks to wait {wait:.0f} s"
                    break
                time.sleep(wait)
        raise InputError(
            "the language model gave no answer",
            where=self.url,
            why=f"{why}, {attempt} tries",
            remedy="check --llm.url, --llm.model and the key, or raise --llm.timeout; answers so far are kept",
        )

    def _ask(self, prompt: str) -> tuple[int, bytes, float | None]:
        """Status (0 where there is none), body (or what went wrong), and the seconds the server asks to wait."""
        end, body = time.monotonic() + self.timeout, bytearray()
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=self._body(prompt)) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:  # a server that sends byte by byte never times out otherwise
                        return 0, b"it did not answer in time", None
                    if len(body) > _LARGEST:
                        return 0, b"it answers without end", None
                return response.status_code, bytes(body), _retry_after(response.headers.get("Retry-After"))
        except httpx.TimeoutException:
            return 0, b"it did not answer in time", None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return 0, reason(error).encode(errors="replace"), None

    def _check_url(self) -> None:
        try:
            parsed = httpx.URL(self.url)
            why = None if parsed.scheme in ("http", "https") and parsed.host else "it has no http:// or no host"
        except (httpx.InvalidURL, ValueError) as error:
            why = reason(error)
        if why is not None:
            raise InputError(
                "the address of the language model cannot be used",
                where=f"--llm.url {self.url}",
                why=why,
                remedy="write it as http://HOST:PORT/v1",
            )

    def _body(self, prompt: str) -> dict[str, Any]:
        messages = _messages(self.instruction, mended(prompt))
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.new_tokens}


def _content(body: bytes) -> str | None:
    """What a chat completion says, an empty text where it says nothing; None where the body is something else."""
    try:
        message = json.loads(body)["choices"][0]["message"]
        content = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if content is None:  # a refusal, or a call of a tool
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds a header asks to wait: a number of them, or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _messages(instruction: str, prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": prompt}]


class LocalModel:
    """A causal language model of transformers on this machine, decoded greedily.

    Args:
        path: Local folder or hub id.
        new_tokens: Longest answer.
        instruction: What it is told before every prompt.
        device: Torch device.

    Raises:
        InputError: The model cannot be loaded.
    """

    def __init__(self, path: str, *, new_tokens: int = 256, instruction: str = "", device: str = "auto") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = pick_device(device)
        with loading(path, "language model", "--llm.model"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            lm: Any = AutoModelForCausalLM.from_pretrained(path)
        self.lm = lm.to(self.device).eval()
        self.model, self.new_tokens, self.instruction = path, new_tokens, instruction

    def __call__(self, prompt: str) -> str:
        """One answer."""
        import torch

        prompt = mended(prompt)
        if self.tokenizer.chat_template:
            messages = _messages(self.instruction, prompt)
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join([*filter(None, [self.instruction]), prompt, ""])
        tokens = self.tokenizer(text, return_tensors="pt")
        room = getattr(self.lm.config, "max_position_embeddings", 1 << 20) - self.new_tokens
        tokens = {name: tokens[name][:, -room:].to(self.device) for name in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        with torch.no_grad():
            out = self.lm.generate(**tokens, max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=pad)
        return str(self.tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
