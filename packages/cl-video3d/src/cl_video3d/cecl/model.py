"""The video tower, the echo tower, and a model that keeps what embedding needs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.nn import mlp_head
from contrastive_core.training import RunFolder
from contrastive_core.weights import load_weights
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Size = Literal["small", "base"]
_CROPS, _OFFSETS = 2, 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture.

    Attributes:
        network: ``small`` (about 70,000 parameters, embeddings of 128) or ``base`` (residual (2+1)-D blocks, 512).
        projection: Width of the space the loss compares in.
    """

    network: Size = "small"
    projection: int = 64

    def __post_init__(self) -> None:
        if self.projection < 2:
            raise InputError(
                "the projection has two dimensions at least", where="--projection", why=f"got {self.projection}"
            )

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return 128 if self.network == "small" else 512


class EchoNet3D(nn.Module):
    """Luma and its change in time, through 3-D convolutions, to one vector (section 4.1).

    Args:
        size: ``small`` or ``base``.

    Example:
        >>> EchoNet3D()(torch.rand(2, 8, 48, 48)).shape
        torch.Size([2, 128])
    """

    def __init__(self, size: Size = "small") -> None:
        super().__init__()
        if size == "small":
            self.trunk = nn.Sequential(_conv(2, 16, (3, 5, 5)), _conv(16, 32, (3, 3, 3)), _conv(32, 64, (3, 3, 3)))
            self.last: nn.Module = nn.Identity()
        else:
            blocks: list[nn.Module] = [_conv(2, 64, (3, 7, 7))]
            for narrow, wide in ((64, 128), (128, 256), (256, 512)):
                blocks += [_Residual(narrow, wide, 2), _Residual(wide, wide, 1)]
            self.trunk = nn.Sequential(*blocks)
            self.last = nn.Linear(1024, 512)

    def forward(self, y: Float[Tensor, "b t h w"]) -> Float[Tensor, "b d"]:
        """Embed luma in [0, 1]; global mean and maximum, so any size will do."""
        change = torch.zeros_like(y)
        change[:, 1:] = 4 * (y[:, 1:] - y[:, :-1])
        features = self.trunk(torch.stack([y - 0.5, change], 1)).flatten(2)
        return self.last(torch.cat([features.mean(2), features.amax(2)], 1))


class EchoTower(nn.Module):
    """Standardised echo vectors ``[b e]`` to the space of the loss (``stats``)."""

    def __init__(self, echo: int, projection: int) -> None:
        super().__init__()
        self.layers = mlp_head([echo, 64, projection], hidden_norm="none")

    def forward(self, echo: Float[Tensor, "b e"]) -> Float[Tensor, "b d"]:
        """Embed echoes."""
        return self.layers(echo)


class ResidualTower(nn.Module):
    """Maps of what each operating point lost ``[b c t h w]`` to the space of the loss (``residual``)."""

    def __init__(self, points: int, projection: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_conv(points, 16, (3, 5, 5)), _conv(16, 32, (3, 3, 3)), _conv(32, 64, (3, 3, 3)))
        self.last = nn.Linear(128, projection)

    def forward(self, maps: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """Embed maps of ``log(1 + |error|)``."""
        features = self.trunk(maps).flatten(2)
        return self.last(torch.cat([features.mean(2), features.amax(2)], 1))


class EchoModel(nn.Module):
    """Video tower and projection; the latter is left behind after training.

    Args:
        config: Architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EchoNet3D(config.network)
        self.projection = mlp_head([config.dim, 128, config.projection], hidden_norm="none")

    def forward(self, y: Float[Tensor, "b t h w"]) -> Float[Tensor, "b p"]:
        """What the loss sees."""
        return self.projection(self.encoder(y))


@torch.inference_mode()
def embed_clips(
    model: EchoModel,
    clips: UInt8[np.ndarray, "n t h w"],
    view: tuple[int, int, int],
    *,
    batch: int = 16,
) -> Float[np.ndarray, "n d"]:
    """Embed clips: the mean over the corners and both ends in time, by views of the size of training.

    Args:
        model: The model.
        clips: Luma.
        view: Frames, height and width of a view.
        batch: Clips at a time.

    Returns:
        Embeddings, float32.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    corners = [
        tuple(round((whole - part) * place) for whole, part, place in zip(clips.shape[1:], view, where, strict=True))
        for where in _grid()
    ]
    corners = list(dict.fromkeys(corners))
    out = []
    for start in range(0, len(clips), batch):
        part = torch.from_numpy(np.ascontiguousarray(clips[start : start + batch])).to(device)
        views = [part[:, t : t + view[0], y : y + view[1], x : x + view[2]].float() / 255 for t, y, x in corners]
        found = model.encoder(torch.cat(views)).reshape(len(corners), len(part), -1).mean(0)
        out.append(found.cpu().numpy())
    model.train(was_training)
    return np.concatenate(out)


def save_model(model: EchoModel, run: RunFolder, extra: Mapping[str, object]) -> None:
    """Write the weights of video tower and projection, and how they are used."""
    run.save_model(model.state_dict(), {"kind": "cecl", "config": dataclasses.asdict(model.config), **extra})


def load_model(run: Path | str) -> tuple[EchoModel, dict[str, object]]:
    """Read a model back, in eval mode on the CPU.

    Returns:
        The model, and how it is used: ``view``, ``clips``, ``codec``.

    Raises:
        InputError: The folder holds no model, or none of this method.
    """
    state, description = load_weights(RunFolder.open(run).path)
    if description.get("kind") != "cecl":
        raise InputError("the model is of another method", where=run, why=f"its kind is {description.get('kind')}")
    try:
        model = EchoModel(ModelConfig(**description["config"]))
        model.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError("the model does not fit its description", where=run, why=str(error).splitlines()[0]) from error
    return model.eval(), description


def _grid() -> list[tuple[float, float, float]]:
    ends, corners = np.linspace(0, 1, _OFFSETS).tolist(), np.linspace(0, 1, _CROPS).tolist()
    return [(t, y, x) for t in ends for y in corners for x in corners]


def _conv(narrow: int, wide: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(narrow, wide, kernel, stride=2, padding=padding, bias=False), nn.BatchNorm3d(wide), nn.ReLU(True)
    )


class _Residual(nn.Module):
    """Two (2+1)-D convolutions around which the input is carried (Tran et al., 2018)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_factored(narrow, wide, stride), nn.ReLU(True), *_factored(wide, wide, 1))
        self.carry: nn.Module = nn.Identity()
        if stride != 1 or narrow != wide:
            self.carry = nn.Sequential(nn.Conv3d(narrow, wide, 1, stride=stride, bias=False), nn.BatchNorm3d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.carry(x))


def _factored(narrow: int, wide: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv3d(narrow, wide, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(wide),
        nn.ReLU(True),
        nn.Conv3d(wide, wide, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(wide),
    ]
