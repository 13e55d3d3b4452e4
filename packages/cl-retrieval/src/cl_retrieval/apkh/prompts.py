"""Where the centres of the kernels come from: frozen, residuals, or a text tower with learnt context."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cl_retrieval.apkh.attributes import TEMPLATE
from cl_retrieval.apkh.objective import VARIANCE_BOUNDS

PromptMode = Literal["frozen", "residual", "context"]


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Attributes and how they learn.

    Attributes:
        attributes: Text file of one phrase a line, or VAW's attribute_index.json; the package's own bank without.
        template: Sentence the phrases are put into, with {a}.
        attribute_features: Features of the attributes instead (.npy, one row a phrase), for data without an encoder.
        prompt_mode: ``residual`` moves each attribute's centre; ``context`` learns words before all attributes through
            CLIP's text tower (a GPU is advisable); ``frozen`` learns neither.
        context: Tokens of learnt context.
        variance: Width sigma² of the kernels, or ``auto``: so that a median image excites a quarter of the attributes.
        strict_zero_shot: Refuse attributes that name classes of the evaluation.
    """

    attributes: Path | None = None
    template: str = TEMPLATE
    attribute_features: Path | None = None
    prompt_mode: PromptMode = "residual"
    context: int = 4
    variance: float | Literal["auto"] = 0.05
    strict_zero_shot: bool = False

    def __post_init__(self) -> None:
        if self.variance != "auto" and not VARIANCE_BOUNDS[0] <= self.variance <= VARIANCE_BOUNDS[1]:
            raise InputError(
                "the width of the kernels is out of range",
                where="--variance",
                why=f"got {self.variance}",
                remedy=f"use {VARIANCE_BOUNDS[0]} to {VARIANCE_BOUNDS[1]}, or auto",
            )
        if self.context < 1:
            raise InputError("the option is at least 1", where="--context", why=f"got {self.context}")


class ResidualCentres(nn.Module):
    """``t_m = norm(t_m^0 + Delta_m)``, Delta zero at first.

    Args:
        first: ``T^0``, unit rows.
        learn: Whether Delta is a parameter; without it the centres are frozen.
    """

    first: Tensor

    def __init__(self, first: Float[Tensor, "m d"], *, learn: bool = True) -> None:
        super().__init__()
        self.register_buffer("first", first.clone())
        self.delta = nn.Parameter(torch.zeros_like(first)) if learn else None

    def forward(self) -> Float[Tensor, "m d"]:
        """Centres."""
        return self.first if self.delta is None else F.normalize(self.first + self.delta, dim=1, eps=1e-12)


class ContextCentres(nn.Module):
    """``t_m = norm(text_tower(V, a_m))``: a context V shared by all attributes, learnt through a frozen text tower.

    CoOp's prompts (Zhou et al., 2022): the embeddings of the words before the attribute are replaced by vectors that
    learn, starting from those words.

    Args:
        tower: An open_clip model; gets no gradient.
        tokens: Prompts as the tokenizer made them, ``[m t]``; the context begins at place 1.
        context: Number of tokens that are replaced.
        chunk: Prompts a pass; activations are recomputed for the gradient, so that memory holds one chunk.
    """

    tokens: Tensor

    def __init__(self, tower: Any, tokens: Int[Tensor, "m t"], *, context: int = 4, chunk: int = 64) -> None:
        super().__init__()
        longest = int(tokens.argmax(1).max()) + 1  # the end token has the largest number
        if longest < context + 3:
            raise InputError(
                "the template is shorter than the context",
                where="--template, --context",
                why=f"{longest - 2} tokens, {context} of context",
                remedy="lengthen the template, or shorten the context",
            )
        self._tower = [tower]  # in a list: the tower is no part of what is saved
        self.chunk, self.count = chunk, context
        self.register_buffer("tokens", tokens[:, :longest].clone(), persistent=False)
        with torch.no_grad():
            start = tower.token_embedding(self.tokens[:1, 1 : 1 + context])[0]
        self.context = nn.Parameter(start.clone())

    def forward(self) -> Float[Tensor, "m d"]:
        """Centres, with gradient to the context alone."""
        self._tower[0].to(self.context.device)  # the tower is no submodule and does not follow by itself
        chunks = self.tokens.split(self.chunk)
        if not torch.is_grad_enabled():
            return torch.cat([self._encode(self.context, part) for part in chunks])
        return torch.cat([checkpoint(self._encode, self.context, part, use_reentrant=False) for part in chunks])

    def _encode(self, context: Tensor, tokens: Tensor) -> Tensor:
        """``encode_text`` of open_clip, with the embeddings of the context replaced, on the longest prompt's length."""
        tower = self._tower[0]
        embedded = tower.token_embedding(tokens)
        embedded = torch.cat(
            [embedded[:, :1], context.expand(len(tokens), -1, -1), embedded[:, 1 + self.count :]], dim=1
        )
        length = tokens.shape[1]
        x = embedded + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length] if tower.attn_mask is not None else None
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        pooled = x[torch.arange(len(tokens)), tokens.argmax(1)]
        projection = tower.text_projection
        out = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return F.normalize(out, dim=1, eps=1e-12)


def context_centres(encoder: Any, prompts: Sequence[str], *, context: int) -> ContextCentres:
    """Centres with learnt context from an open_clip encoder.

    Raises:
        InputError: The encoder has no open_clip text tower of the plain kind, or a prompt is too long for it.
    """
    tower, tokenizer = getattr(encoder, "model", None), getattr(encoder, "tokenizer", None)
    needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
    if tower is None or tokenizer is None or not all(hasattr(tower, name) for name in needed):
        raise InputError(
            "learnt context needs CLIP's own text tower",
            where="--prompt-mode context",
            why=f"the encoder {getattr(encoder, 'name', encoder)} has none",
            remedy="use --prompt-mode residual",
        )
    return ContextCentres(tower, tokenizer(list(prompts)), context=context)


def mean_cosine(centres: Float[Tensor, "m d"]) -> float:
    """Mean cosine of different centres; near 1 when the prompts have collapsed."""
    cosines = centres @ centres.T
    count = len(centres)
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
