"""Image networks by name: of timm, torchvision or transformers, and two small ones."""

import contextlib
import dataclasses
import difflib
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive_core.errors import ContrastiveWarning, InputError, reason
from contrastive_core.weights import read_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OWN = ("tiny", "resnet18-cifar")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An image network and how its images are normalised.

    Attributes:
        network: Maps normalised images ``[b 3 h w]`` to features ``[b d]``.
        mean: Mean of its training images by channel, of values in [0, 1].
        std: Their standard deviation.
    """

    network: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def image_backbone(
    name: str, *, image_size: int = 224, weights: str | None = None, note_random: bool = False
) -> Backbone:
    """An image network without its classifier.

    Args:
        name: ``tiny`` or ``resnet18-cifar``; any model of timm or torchvision by name, ``timm:`` or ``torchvision:``
            before it picks the library; or ``transformers:FOLDER_OR_ID``, any vision model of ``AutoModel`` with its
            own weights.
        image_size: Side of the input in pixels.
        weights: Local file of tensors, ``hub`` for the published ones, or ``None`` for random ones.
        note_random: Warn that random weights are random.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        InputError: The name is unknown, its library not installed, a file unreadable or of another network, the hub
            unreachable.
    """
    library, _, plain = name.rpartition(":") if not name.startswith("transformers:") else name.partition(":")
    if library not in ("", "timm", "torchvision", "transformers") or not plain:
        raise InputError(
            "unknown backbone",
            where="--backbone",
            why=f"got {name}",
            remedy="use NAME, timm:NAME, torchvision:NAME or transformers:FOLDER",
        )
    if name in _OWN and weights == "hub":
        raise InputError(f"the backbone {name} has no published weights", where="--weights", remedy="leave it out")
    try:
        if library == "transformers":
            return Backbone(_from_transformers(plain))
        network = _own(name) if name in _OWN else _from_library(library, plain, image_size, hub=weights == "hub")
    except ImportError as error:
        raise InputError(
            "the library of the backbone is not installed",
            where=f"--backbone {name}",
            why=reason(error),
            remedy="pip install timm torchvision transformers",
        ) from error
    if weights is None and note_random:
        warnings.warn(
            f"{name} has random weights: pass its published ones as a file, or `hub`", ContrastiveWarning, stacklevel=2
        )
    elif weights not in (None, "hub"):
        _load(network, Path(str(weights)))
    config = getattr(network, "pretrained_cfg", None) or {}
    return Backbone(network, tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD)))


class TinyResNet(nn.Module):
    """A residual network of 16, 32 and 64 channels with two blocks each and a stem of stride 2, for small machines."""

    def __init__(self) -> None:
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        width = 16
        for out, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            down = None
            if stride != 1:
                down = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            layers.append(BasicBlock(width, out, stride, down))
            width = out
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64"]:
        """Features of normalised images."""
        return self.layers(images)


class _Pooled(nn.Module):
    """A transformers vision model as a map from pixels to one vector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        out = self.model(pixel_values=images)
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state.mean(1) if pooled is None else pooled).flatten(1)


def _own(name: str) -> nn.Module:
    if name == "tiny":
        return TinyResNet()
    from torchvision.models import resnet18

    model = resnet18()  # with a 3 x 3 stem of stride 1 and without max-pooling
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return model


def _from_library(library: str, name: str, image_size: int, *, hub: bool) -> nn.Module:
    import timm
    from torchvision import models

    in_timm = library != "torchvision" and timm.is_model(name)
    if not in_timm and (library == "timm" or name not in models.list_models(module=models)):
        close = difflib.get_close_matches(name, {*timm.list_models(), *models.list_models(module=models)}, 3)
        raise InputError(
            "unknown backbone",
            where="--backbone",
            why=f"{library} has no {name}" if library else f"neither timm nor torchvision has {name}",
            remedy=f"for instance {', '.join(close or [*_OWN, 'resnet18'])}",
        )
    try:
        if not in_timm:
            # Published weights of a transformer belong to its own size; untrained it can have any.
            size = {"image_size": image_size} if name.startswith("vit_") and not hub else {}
            return _without_classifier(models.get_model(name, weights="DEFAULT" if hub else None, **size))
        model = timm.create_model(name, pretrained=hub, num_classes=0)
        sizes = [getattr(getattr(model, part, None), "img_size", None) for part in ("patch_embed", "stem")]
        if all(size in (None, (image_size, image_size)) for size in sizes):
            return model
        with contextlib.suppress(TypeError):  # a family of one size only, which the caller will find out
            model = timm.create_model(name, pretrained=hub, num_classes=0, img_size=image_size)
        return model
    except (OSError, RuntimeError) as error:
        if not hub:
            raise
        raise _unreachable(name, error) from error


def _from_transformers(name: str) -> nn.Module:
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, error) from error
    return _Pooled(getattr(model, "vision_model", model))


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        "the backbone's weights could not be fetched",
        where=f"--backbone {name}",
        why=reason(error),
        remedy="fetch them elsewhere and name the local path, for timm and torchvision with --weights",
    )


def _without_classifier(model: nn.Module) -> nn.Module:
    """Replace the classifier of a torchvision model by nothing, and leave auxiliary classifiers out."""
    for name, nothing in {"AuxLogits": None, "aux1": None, "aux2": None, "aux_logits": False}.items():
        if hasattr(model, name):
            setattr(model, name, nothing)
    # The last linear layer; SqueezeNet, which has none, ends in a convolution.
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    linear = [path for path, module in layers if isinstance(module, nn.Linear)]
    parent, _, child = (linear or [path for path, _ in layers])[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _load(model: nn.Module, path: Path) -> None:
    tensors, expected = read_tensors(path), model.state_dict()
    # A classifier in the file has no place in a backbone; anything else that is missing or misshaped is an error.
    wrong = sorted(n for n, value in expected.items() if n not in tensors or tensors[n].shape != value.shape)
    if wrong:
        raise InputError(
            "the weights are of another backbone",
            where=path,
            why=f"{len(wrong)} of {len(expected)} tensors are missing or of another shape, for instance {wrong[0]}",
        )
    model.load_state_dict({name: tensors[name] for name in expected})


def feature_width(network: nn.Module, image_size: int, name: str) -> int:
    """Features an image network gives.

    Args:
        network: Maps ``[b 3 h w]`` to ``[b d]``.
        image_size: Side of the input in pixels.
        name: What the network is called in errors.

    Raises:
        InputError: It does not take images of this size, or gives no vector an image.
    """
    training = network.training
    try:
        with torch.no_grad():
            out = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            "the backbone does not take images of this size",
            where=f"--backbone {name}, --image-size {image_size}",
            why=reason(error),
            remedy="use larger images, or another backbone",
        ) from error
    finally:
        network.train(training)
    if out.ndim != 2:
        raise InputError(
            "the backbone does not give one vector an image",
            where=f"--backbone {name}",
            why=f"its output has the shape {tuple(out.shape)}",
        )
    return int(out.shape[1])
