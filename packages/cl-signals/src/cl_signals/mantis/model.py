"""The Mantis encoder, V1 (Mantis-8M, Mantis+) and V2 (arXiv 2502.15637, 2602.17868)."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from contrastive_core.errors import InputError
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float
from torch import Tensor, nn

from cl_signals.mantis.tokens import TokenGenerator

Token = Literal["cls", "mean", "combined"]
Preset = Literal["v1", "v2", "tiny"]
KIND = "mantis-encoder"


@dataclasses.dataclass(frozen=True)
class MantisConfig:
    """Architecture of an encoder.

    Attributes:
        version: ``v1`` (sinusoidal positions, LayerNorm, GELU) or ``v2`` (rotary positions, RMSNorm, SwiGLU).
        hidden: Token width.
        num_patches: Patches a series is cut into.
        seq_len: Nominal length of a series; V1 takes no other.
        layers: Transformer layers.
        heads: Attention heads.
        head_dim: Width of a head.
        mlp_dim: Inner width of the feed-forward part.
        dropout: Dropout rate while training.
        conv_kernel: Kernel size of the token generator, odd.
        xpos_layout: How the 2-member scales of V2's rotary positions are laid out. Released weights need ``concat``;
            ``interleave`` gives both members of a rotated pair the same scale, as the xPos paper has it.
    """

    version: Literal["v1", "v2"] = "v2"
    hidden: int = 256
    num_patches: int = 32
    seq_len: int = 512
    layers: int = 6
    heads: int = 8
    head_dim: int = 32
    mlp_dim: int = 512
    dropout: float = 0.1
    conv_kernel: int = 41
    xpos_layout: Literal["concat", "interleave"] = "concat"

    def __post_init__(self) -> None:
        if self.version not in ("v1", "v2") or self.xpos_layout not in ("concat", "interleave"):
            raise InputError("unknown architecture", why=f"version {self.version}, xpos_layout {self.xpos_layout}")
        sizes = (self.hidden, self.num_patches, self.layers, self.heads, self.head_dim, self.mlp_dim)
        if min(sizes) < 1 or self.conv_kernel % 2 == 0 or self.head_dim % 2 or self.hidden % 2:
            raise InputError(
                "the architecture's sizes do not make an encoder",
                why="sizes are positive, the kernel is odd, token and head widths are even",
            )
        if self.seq_len % self.num_patches or self.seq_len < 2 * self.num_patches:
            raise InputError(
                "the series length does not divide into patches",
                why=f"length {self.seq_len}, {self.num_patches} patches of at least 2 values",
                remedy=f"use a multiple of {self.num_patches}, at least {2 * self.num_patches}",
            )

    @classmethod
    def preset(cls, name: Preset) -> "MantisConfig":
        """The published V1 and V2, or ``tiny``: a V2 of three narrow layers for CPUs."""
        presets = {
            "v1": cls(version="v1", head_dim=128, conv_kernel=17),
            "v2": cls(),
            "tiny": cls(hidden=128, layers=3, heads=4, head_dim=32, mlp_dim=256),
        }
        if name not in presets:
            raise InputError("unknown architecture", why=f"got {name}", remedy=f"one of {', '.join(presets)}")
        return presets[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MantisConfig":
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: A value is missing, unknown or out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError("the architecture's description cannot be read", why=str(error)) from error


class Mantis(nn.Module):
    """Encoder of univariate series; the channels of a multivariate one are encoded one by one.

    Args:
        config: The architecture.
    """

    positions: Tensor

    def __init__(self, config: MantisConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = TokenGenerator(config.hidden, config.num_patches, config.conv_kernel)
        self.cls_token = nn.Parameter(torch.randn(config.hidden))
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.layers)])
        self.projector = nn.Sequential(nn.LayerNorm(config.hidden), nn.Linear(config.hidden, config.hidden))
        self.dropout = nn.Dropout(config.dropout)
        positions = _sinusoids(config.num_patches + 1, config.hidden)
        self.register_buffer("positions", positions if config.version == "v1" else None, persistent=False)

    def forward(self, x: Float[Tensor, "b 1 t"], *, layer: int = -1, token: Token = "cls") -> Float[Tensor, "b h"]:
        """Embed series.

        Args:
            x: Raw values, not normalised by the caller, without NaN. T is a multiple of ``num_patches``.
            layer: Layer read out, 0-based; -1 is the last.
            token: ``cls``, ``mean`` of the patch tokens, or ``combined`` (both, concatenated).

        Returns:
            ``[b hidden]``, or ``[b 2*hidden]`` for ``combined``.

        Raises:
            InputError: The length does not divide into patches, or the layer does not exist.
        """
        self.check_length(x.shape[-1])
        last = self.layer_index(layer)
        first = self.config.version == "v1"  # V1 puts the class token first, V2 last
        z = self.tokens(x)
        cls = self.cls_token.expand(len(z), 1, -1)
        z = torch.cat([cls, z] if first else [z, cls], 1)
        if first:
            z = self.dropout(z + self.positions)
        at = 0 if first else self.config.num_patches
        for index, block in enumerate(self.layers[: last + 1]):
            # Nothing reads the patch tokens of the last layer when only the class token is wanted.
            z = block(z, only=at if index == last and token == "cls" else None)
        if token == "cls":
            return z[:, 0]
        mean = (z[:, 1:] if first else z[:, :-1]).mean(1)
        return mean if token == "mean" else torch.cat([z[:, at], mean], 1)

    def project(self, x: Float[Tensor, "b 1 t"]) -> Float[Tensor, "b d"]:
        """Projection of the last class token, the space of the contrastive objective."""
        return self.projector(self(x))

    def embedding_dim(self, token: Token) -> int:
        """Length of one channel's embedding."""
        return self.config.hidden * (2 if token == "combined" else 1)

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write the encoder as ``model.safetensors`` and ``model.json``, into a run folder for instance."""
        save_weights(folder, self.state_dict(), {"kind": KIND, "config": self.config.to_dict()})

    @classmethod
    def load(cls, folder: Path | str | os.PathLike[str]) -> "Mantis":
        """Read an encoder written by :meth:`save` or by pre-training, in eval mode.

        Raises:
            InputError: The folder holds no encoder, or its files are missing or corrupt.
        """

        def build(state: dict[str, Tensor], description: dict[str, Any]) -> Mantis:
            model = cls(MantisConfig.from_dict(description["config"]))
            model.load_state_dict(state)
            return model.eval()

        return load_model(folder, KIND, build, made_by="cl-signals mantis pretrain")

    def layer_index(self, layer: int) -> int:
        """Resolve -1 to the last layer.

        Raises:
            InputError: The layer does not exist.
        """
        if not -1 <= layer < len(self.layers):
            raise InputError(
                "the encoder has no such layer",
                where="--layer",
                why=f"got {layer}, there are {len(self.layers)}",
                remedy=f"use -1 to {len(self.layers) - 1}",
            )
        return len(self.layers) - 1 if layer == -1 else layer

    def unread(self, layer: int) -> list[nn.Module]:
        """Parts that the output of a layer does not depend on: later layers and the projector."""
        return [*self.layers[self.layer_index(layer) + 1 :], self.projector]

    def truncated(self, layer: int) -> "Mantis":
        """A copy that ends after ``layer``: same output there, fewer parameters."""
        keep = self.layer_index(layer) + 1
        copy = Mantis(dataclasses.replace(self.config, layers=keep))
        state = {name: value for name, value in self.state_dict().items() if name in copy.state_dict()}
        copy.load_state_dict(state)
        return copy.train(self.training)

    def check_length(self, length: int) -> None:
        """Refuse lengths the token generator was not made for.

        Raises:
            InputError: Not a multiple of the number of patches, below two values a patch, or, for V1, not its own.
        """
        patches = self.config.num_patches
        if length % patches or length < 2 * patches:
            raise InputError(
                "the series length does not divide into patches",
                why=f"length {length}, {patches} patches of at least 2 values",
                remedy=f"resize to a multiple of {patches}, at least {2 * patches}",
            )
        if self.config.version == "v1" and length != self.config.seq_len:
            raise InputError(
                "a V1 encoder takes one length only",
                why=f"its kernel was made for {self.config.seq_len} values, got {length}",
                remedy=f"resize to {self.config.seq_len}, or use V2",
            )


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward of either version."""

    cos: Tensor
    sin: Tensor
    xpos: Tensor

    def __init__(self, config: MantisConfig) -> None:
        super().__init__()
        self.v1 = config.version == "v1"
        self.heads, self.head_dim, self.rate = config.heads, config.head_dim, config.dropout
        inner = config.heads * config.head_dim
        norm = nn.LayerNorm if self.v1 else _RMSNorm
        self.norm1, self.norm2 = norm(config.hidden), norm(config.hidden)
        self.qkv = nn.Linear(config.hidden, 3 * inner, bias=not self.v1)
        self.out = nn.Linear(inner, config.hidden)
        self.mlp_in = nn.Linear(config.hidden, config.mlp_dim * (1 if self.v1 else 2))
        self.mlp_out = nn.Linear(config.mlp_dim, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        cos, sin, scale = _rotary(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("xpos", scale, persistent=False)

    def forward(self, x: Float[Tensor, "b p d"], only: int | None = None) -> Float[Tensor, "b q d"]:
        """All tokens, or the one at ``only``."""
        mixed = self._attend(self.norm1(x), only)
        x = mixed + (x if only is None else x[:, only : only + 1])
        h = self.mlp_in(self.norm2(x))
        if self.v1:
            h = self.dropout(F.gelu(h))
        else:
            gate, value = h.chunk(2, -1)
            h = F.silu(gate) * value
        return x + self.dropout(self.mlp_out(h))

    def _attend(self, h: Tensor, only: int | None) -> Tensor:
        batch, count, _ = h.shape
        if self.v1:  # memory order of the projection's output: head, then place in the head
            q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        else:  # place in the head, then head
            q, k, v = self.qkv(h).unflatten(-1, (3, self.head_dim, self.heads)).permute(2, 0, 4, 1, 3)
            q, k = self._rotate(q) * self.xpos.to(q), self._rotate(k) / self.xpos.to(k)
        if only is not None:
            q, count = q[:, :, only : only + 1], 1
        dropout = self.rate if self.training and not self.v1 else 0.0
        z = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        z = self.out(z.transpose(1, 2).reshape(batch, count, -1))
        return self.dropout(z) if self.v1 else z

    def _rotate(self, x: Tensor) -> Tensor:
        """Turn adjacent pairs of channels by the angle of their position."""
        pairs = x.unflatten(-1, (-1, 2))
        even, odd = pairs[..., 0], pairs[..., 1]
        cos, sin = self.cos.to(x), self.sin.to(x)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.gain, eps=1e-8)


def _sinusoids(count: int, width: int) -> Float[Tensor, "count width"]:
    angle = torch.arange(count)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def _rotary(config: MantisConfig) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Cosines and sines ``[p r/2]`` and xPos scales ``[p r]`` of every position; nothing for V1."""
    if config.version == "v1":
        return None, None, None
    count, width = config.num_patches + 1, config.head_dim
    even = torch.arange(0, width, 2, dtype=torch.float32)
    position = torch.arange(count, dtype=torch.float32)
    angle = position[:, None] * 10000.0 ** (-even / width)
    base = (even + 0.4 * width) / (1.4 * width)
    scale = base ** ((position[:, None] - count // 2) / 512)
    both = torch.cat([scale, scale], 1) if config.xpos_layout == "concat" else scale.repeat_interleave(2, 1)
    return angle.cos(), angle.sin(), both
