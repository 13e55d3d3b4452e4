"""Features without an echo, to compare with: spatial and temporal information, one trial encode, frozen networks."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Float, UInt8
from scipy.ndimage import sobel
from torch import Tensor

from cl_video3d.cecl.curves import log_rates
from cl_video3d.cecl.store import EchoSet
from cl_video3d.video.reading import to_rgb

_FRAMES = 3


def spatial_information(frames: UInt8[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """Standard deviation of the Sobel gradient of each frame (ITU-T P.910, 7.7), without the border."""
    # Frame by frame: on the whole clip the operator would smooth over time too.
    gradients = [np.hypot(sobel(y, axis=0), sobel(y, axis=1))[1:-1, 1:-1] for y in frames.astype(np.float64)]
    return np.array([gradient.std() for gradient in gradients])


def temporal_information(frames: UInt8[np.ndarray, "t h w"]) -> Float[np.ndarray, " t1"]:
    """Standard deviation of the difference of neighbouring frames (ITU-T P.910, 7.8)."""
    return np.diff(frames.astype(np.float64), axis=0).std((1, 2))


def siti_features(clips: UInt8[np.ndarray, "n t h w"]) -> Float[np.ndarray, "n 6"]:
    """Logarithms of the largest and mean SI and TI, and of mean and spread of luma.

    Args:
        clips: Luma.
    """
    rows = []
    for clip in clips:
        si, ti = spatial_information(clip), temporal_information(clip)
        rows.append([si.max(), si.mean(), ti.max(), ti.mean(), clip.mean(), clip.std()])
    return np.log(np.array(rows) + 0.1)


def trial_features(echoes: EchoSet) -> Float[np.ndarray, "n 1"]:
    """``log2 bpp`` at the middle operating point: one trial encode of the clip itself, which the others do without.

    Args:
        echoes: Clips at the operating points of one codec.
    """
    middle = (len(echoes.settings) - 1) // 2
    return log_rates(echoes.measured["bpp"][:, middle : middle + 1])


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen image network.

    Attributes:
        features: Maps normalised images ``[b 3 h w]`` to ``[b d]``.
        mean: Mean of its training images, by channel, of values in [0, 1].
        std: Their standard deviation.
    """

    features: Callable[[Tensor], Tensor]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def load_backbone(name: str, *, weights: str | None = None) -> Backbone:
    """A frozen image network by name.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, or ``transformers:FOLDER_OR_ID`` (any vision model of
            ``AutoModel``, such as DINOv2, CLIP's vision tower or ViT; its own weights).
        weights: For timm and torchvision: a local file of tensors (``.safetensors``, or a torch file), ``hub`` for the
            published weights, or ``None`` for random ones, with a note that they are.

    Returns:
        The network and how its images are normalised.

    Raises:
        InputError: The library is missing, the name unknown, the file unreadable, or the hub unreachable.
    """
    library, _, plain = name.partition(":")
    if library not in ("timm", "torchvision", "transformers") or not plain:
        raise InputError(
            "the backbone is not named",
            where="--backbone",
            why=f"got {name}",
            remedy="use timm:NAME, torchvision:NAME or transformers:FOLDER",
        )
    try:
        if library == "transformers":
            return _from_transformers(plain)
        model = _from_library(library, plain, hub=weights == "hub")
    except ImportError as error:
        raise InputError(
            "the library of the backbone is not installed",
            where="--backbone",
            why=str(error),
            remedy="install cl-video3d[backbones]",
        ) from error
    if weights is None:
        warnings.warn(
            f"{name} has random weights: pass its published ones as a file, or `hub`", ContrastiveWarning, stacklevel=2
        )
    elif weights != "hub":
        _load(model, Path(weights))
    model = model.eval().requires_grad_(False)
    config = getattr(model, "pretrained_cfg", None) or {}
    if library == "timm" and "mean" in config:
        return Backbone(model, tuple(config["mean"]), tuple(config["std"]))
    return Backbone(model)


@torch.inference_mode()
def backbone_features(
    backbone: Backbone, clips: UInt8[np.ndarray, "n t rows w"], *, side: int = 224, batch: int = 16
) -> Float[np.ndarray, "n d"]:
    """Mean features of three frames of each clip, enlarged to the network's input.

    Args:
        backbone: Of :func:`load_backbone`.
        clips: Planar 4:2:0.
        side: Side of the input.
        batch: Clips at a time.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    out = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        places = np.linspace(0, part.shape[1] - 1, min(_FRAMES, part.shape[1])).round().astype(int)
        images = np.stack([to_rgb(clip[place]) for clip in part for place in places])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
        features = backbone.features((x - mean) / std)
        out.append(features.reshape(len(part), len(places), -1).mean(1).numpy())
    return np.concatenate(out)


def _from_library(library: str, name: str, *, hub: bool) -> Any:
    try:
        if library == "timm":
            import timm

            if not timm.is_model(name):
                raise InputError("unknown backbone", where="--backbone", why=f"timm has no {name}")
            return timm.create_model(name, pretrained=hub, num_classes=0)
        from torchvision import models

        if name not in models.list_models(module=models):
            raise InputError("unknown backbone", where="--backbone", why=f"torchvision has no {name}")
        model = models.get_model(name, weights="DEFAULT" if hub else None)
        last = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)][-1]
        parent, _, child = last.rpartition(".")
        setattr(model.get_submodule(parent), child, torch.nn.Identity())
        return model
    except (OSError, RuntimeError) as error:
        raise _unreachable(name, error) from error


def _from_transformers(name: str) -> Backbone:
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, error) from error
    model = getattr(model, "vision_model", model).eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        found = model(pixel_values=x)
        pooled = getattr(found, "pooler_output", None)
        return (found.last_hidden_state.mean(1) if pooled is None else pooled).flatten(1)

    return Backbone(features)


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        "the backbone's weights could not be fetched",
        where=f"--backbone {name}",
        why=str(error).splitlines()[0],
        remedy="fetch them elsewhere and name the local path",
    )


def _load(model: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError("the file of weights is missing", where=path, remedy="check --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key: value for key, value in state.get("state_dict", state).items() if isinstance(value, Tensor)}
    except Exception as error:  # truncated and foreign files fail in many ways inside the readers
        raise InputError(
            "the weights cannot be read", where=path, why=(str(error) or type(error).__name__).splitlines()[0]
        ) from error
    wanted = model.state_dict()
    wrong = sorted(key for key, value in wanted.items() if key not in tensors or tensors[key].shape != value.shape)
    if wrong:
        raise InputError(
            "the weights are of another backbone",
            where=path,
            why=f"{len(wrong)} of {len(wanted)} tensors are missing or of another shape, such as {wrong[0]}",
        )
    model.load_state_dict({key: tensors[key] for key in wanted})
