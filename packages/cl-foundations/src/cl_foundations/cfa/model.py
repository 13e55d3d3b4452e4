"""Backbone, head and posterior: from pixels to distributions over factors."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from contrastive_core.errors import InputError
from contrastive_core.losses import non_negative
from contrastive_core.nn import GaussianHead, WeibullHead
from contrastive_core.training import RunFolder
from jaxtyping import Float
from torch import Tensor, nn

from cl_foundations.cfa.objective import Likelihood
from cl_foundations.cfa.posterior import FactorPosterior, NormalPosterior, PointPosterior, WeibullPosterior

Method = Literal["simclr", "ncl", "cfa", "cnfa"]
Activation = Literal["relu", "rep_relu", "softplus"]
KIND = "cfa-model"
_PIXEL_MEAN, _PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and what its embedding is.

    Attributes:
        method: ``simclr`` (deterministic), ``ncl`` (deterministic, non-negative), ``cfa`` (normal posterior), ``cnfa``
            (Weibull posterior).
        likelihood: ``infonce``, ``spectral_exact`` or ``spectral_mc``; with ``simclr`` or ``ncl`` the spectral ones are
            the plain spectral contrastive loss.
        backbone: ``tiny``, ``resnet18-cifar``, or any model of timm or torchvision by name; ``timm:`` or
            ``torchvision:`` before the name picks the library.
        image_size: Side of the network's input, in pixels.
        hidden: Width of the head's hidden layer.
        factors: Number of factors K.
        activation: What makes factors non-negative: ``relu``, ``rep_relu`` or ``softplus`` with ``ncl`` (rep_relu if
            not given), ``softplus`` or ``rep_relu`` with ``cnfa`` (softplus if not given).
        shape_min: Smallest Weibull shape, at least 0.3; below 1 codes become very sparse and samples heavy-tailed.
    """

    method: Method = "cnfa"
    likelihood: Likelihood = "infonce"
    backbone: str = "resnet18-cifar"
    image_size: int = 32
    hidden: int = 2048
    factors: int = 256
    activation: Activation | None = None
    shape_min: float = 1.0

    def __post_init__(self) -> None:
        allowed = {"ncl": ("relu", "rep_relu", "softplus"), "cnfa": ("rep_relu", "softplus")}.get(self.method, ())
        if self.activation is not None and self.activation not in allowed:
            raise InputError(
                f"the activation {self.activation} does not go with {self.method}",
                where="--activation",
                remedy=f"one of {', '.join(allowed)}" if allowed else "leave it out",
            )
        for name, least in (("image_size", 8), ("hidden", 1), ("factors", 2)):
            if getattr(self, name) < least:
                where = "--" + name.replace("_", "-")
                raise InputError(f"a size is at least {least}", where=where, why=f"got {getattr(self, name)}")
        if not 0.3 <= self.shape_min < 100:
            raise InputError(
                "the smallest Weibull shape lies in [0.3, 100)",
                where="--shape-min",
                why=f"got {self.shape_min}; below 0.3 the moments overwhelm single precision",
            )

    @property
    def uninformative(self) -> bool:
        """Whether the variances tell nothing about single images: normal factors under a spectral likelihood."""
        return self.method == "cfa" and self.likelihood != "infonce"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


class FactorModel(nn.Module):
    """Backbone and head.

    Args:
        config: What to build.
        weights: Weights of the backbone: a local file (.safetensors, or a torch file of tensors), or ``hub`` for those
            the library itself would download.

    Raises:
        InputError: The backbone is not known, does not take images of this size, or its weights cannot be read.
    """

    def __init__(self, config: ModelConfig, *, weights: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.image_size, weights=weights)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(_PIXEL_MEAN)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(_PIXEL_STD)[:, None, None], persistent=False)
        self.width = _width(self.backbone, config)
        self.trunk = nn.Sequential(nn.Linear(self.width, config.hidden), nn.ReLU())
        # The spectral losses are not normalised: small first outputs keep their squares from blowing up.
        gain = 1.0 if config.likelihood == "infonce" else 0.1
        self.head: nn.Module
        if config.method == "cfa":
            self.head = GaussianHead(config.hidden, config.factors, gain=gain)
        elif config.method == "cnfa":
            kind: Any = config.activation or "softplus"
            self.head = WeibullHead(
                config.hidden, config.factors, shape_min=config.shape_min, mean_activation=kind, gain=gain
            )
        else:
            self.head = nn.Linear(config.hidden, config.factors)
            with torch.no_grad():
                self.head.weight.mul_(gain)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Backbone features of images with values in [0, 1]."""
        return self.backbone((images - self.pixel_mean) / self.pixel_std)

    def posterior(self, features: Float[Tensor, "b d"]) -> FactorPosterior:
        """Distribution of the factors given backbone features, in float32."""
        hidden = self.trunk(features)
        if self.config.method == "cfa":
            return NormalPosterior(*self.head(hidden))
        if self.config.method == "cnfa":
            return WeibullPosterior(*self.head(hidden))
        z = self.head(hidden).float()
        if self.config.method == "ncl":
            z = non_negative(z, self.config.activation or "rep_relu")
        return PointPosterior(z)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> FactorPosterior:
        """Distribution of the factors given images with values in [0, 1]."""
        return self.posterior(self.features(images))


def build_backbone(name: str, image_size: int, *, weights: str | None = None) -> nn.Module:
    """A network from images to feature vectors.

    Args:
        name: As :class:`ModelConfig`.
        image_size: Side of the input.
        weights: Local file, or ``hub``.

    Raises:
        InputError: Unknown name, unreachable hub or unreadable weights.
    """
    if name in ("tiny", "resnet18-cifar"):
        if weights == "hub":
            raise InputError(f"the backbone {name} has no published weights", where="--weights", remedy="leave it out")
        model = TinyResNet() if name == "tiny" else _resnet18_cifar()
    else:
        library, _, plain = name.rpartition(":")
        if library not in ("", "timm", "torchvision"):
            raise InputError("unknown library of the backbone", where="--backbone", why=f"got {library}")
        model = _from_library(library, plain, image_size, hub=weights == "hub")
    if weights is not None and weights != "hub":
        _load_backbone(model, Path(weights))
    return model


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


def save_model(model: FactorModel, run: RunFolder) -> None:
    """Write weights and configuration to a run folder."""
    run.save_model(model.state_dict(), {"kind": KIND, "config": model.config.to_dict()})


def load_model(folder: Path | str) -> FactorModel:
    """Read a model in eval mode from a run folder.

    Raises:
        InputError: There is no such folder, or it holds something else.
    """
    state, description = RunFolder.open(folder).load_model()
    if description.get("kind") != KIND:
        raise InputError(
            "the folder holds no model of this method",
            where=folder,
            why=f"it holds {description.get('kind', 'something unnamed')}",
            remedy="name the OUT of `cl-foundations cfa train`",
        )
    model = FactorModel(ModelConfig(**description["config"]))
    model.load_state_dict(state)
    return model.eval()


def _resnet18_cifar() -> nn.Module:
    """ResNet-18 with a 3 × 3 stem of stride 1 and without max-pooling."""
    from torchvision.models import resnet18

    model = resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return model


def _from_library(library: str, name: str, image_size: int, *, hub: bool) -> nn.Module:
    import timm
    from torchvision import models

    in_timm = library != "torchvision" and timm.is_model(name)
    if not in_timm and (library == "timm" or name not in models.list_models(module=models)):
        import difflib

        close = difflib.get_close_matches(name, {*timm.list_models(), *models.list_models(module=models)}, 3)
        raise InputError(
            "unknown backbone",
            where="--backbone",
            why=f"neither timm nor torchvision has {name}" if not library else f"{library} has no {name}",
            remedy=f"for instance {', '.join(close or ['tiny', 'resnet18-cifar', 'resnet18'])}",
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
        raise InputError(
            "the published weights could not be fetched",
            where=f"--backbone {name}",
            why=str(error).splitlines()[0],
            remedy="fetch them elsewhere and pass the file with --weights PATH",
        ) from error


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


def _load_backbone(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError("the file of weights is missing", where=path, remedy="check --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # truncated and foreign files fail in many ways inside the readers
        raise InputError(
            "the weights cannot be read",
            where=path,
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="pass .safetensors, or a torch file that holds tensors only",
        ) from error
    wanted = model.state_dict()
    # A classifier in the file has no place in a backbone; anything else that is missing or misshaped is an error.
    wrong = sorted(name for name, value in wanted.items() if name not in tensors or tensors[name].shape != value.shape)
    if wrong:
        raise InputError(
            "the weights are of another backbone",
            where=path,
            why=f"{len(wrong)} of {len(wanted)} tensors are missing or of another shape, for instance {wrong[0]}",
        )
    model.load_state_dict({name: tensors[name] for name in wanted})


def _width(backbone: nn.Module, config: ModelConfig) -> int:
    training = backbone.training
    try:
        with torch.no_grad():
            out = backbone.eval()(torch.zeros(1, 3, config.image_size, config.image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            "the backbone does not take images of this size",
            where=f"--backbone {config.backbone}, --image-size {config.image_size}",
            why=str(error).splitlines()[0] if str(error) else None,
            remedy="use larger images, or another backbone",
        ) from error
    finally:
        backbone.train(training)
    if out.ndim != 2:
        raise InputError(
            "the backbone does not give one vector an image",
            where=f"--backbone {config.backbone}",
            why=f"its output has the shape {tuple(out.shape)}",
        )
    return int(out.shape[1])
