"""Reading checkpoints of the original implementation from a local file."""

import dataclasses
import re
from pathlib import Path

import torch
from contrastive_core.errors import InputError
from contrastive_core.weights import read_tensors
from torch import Tensor

from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.tokens import SCALES

_SIMPLE = {
    "tokgen_unit.convs.{i}.conv.weight": "tokens.{branch}.weight",
    "tokgen_unit.convs.{i}.conv.bias": "tokens.{branch}.bias",
    "tokgen_unit.layer_norms.{i}.weight": "tokens.{branch}.norm.weight",
    "tokgen_unit.layer_norms.{i}.bias": "tokens.{branch}.norm.bias",
}
_SCALAR = {"w": "weight", "b": "bias", "layer_norm.weight": "gain", "layer_norm.bias": "shift"}
_LAYER_V1 = {
    "0.norm": "norm1",
    "0.fn.to_qkv": "qkv",
    "0.fn.to_out.0": "out",
    "1.norm": "norm2",
    "1.fn.net.0": "mlp_in",
    "1.fn.net.3": "mlp_out",
}
_LAYER_V2 = {"attention.wQKV": "qkv", "attention.wO": "out", "mlp.0": "mlp_in", "mlp.2": "mlp_out"}


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import found.

    Attributes:
        version: ``v1`` or ``v2``.
        missing: Our parameters the file had no value for.
        unexpected: Tensors of the file nobody needed, besides tables that are computed.
    """

    version: str
    missing: list[str]
    unexpected: list[str]


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a local checkpoint, under the names of the original implementation.

    Raises:
        InputError: The file is missing, is no checkpoint, or would run code when loaded.
    """
    return {name.removeprefix("module."): value for name, value in read_tensors(path).items()}


def import_state(state: dict[str, Tensor], *, strict: bool = True) -> tuple[Mantis, ImportReport]:
    """Build an encoder from a state dict of the original implementation.

    Args:
        state: Tensors under the original names.
        strict: Refuse a file that lacks parameters or has others.

    Returns:
        The encoder in eval mode, and what was missing or left over.

    Raises:
        InputError: The names are not Mantis', or with ``strict`` do not match to the last one.
    """
    config = _config(state)
    ours: dict[str, Tensor] = {}
    left: list[str] = []
    scalars: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        target = _target(name, config.version)
        if target is None:
            if not _computed(name):
                left.append(name)
        elif isinstance(target, tuple):
            scalars.setdefault(target[0], {})[target[1]] = value.reshape(-1)
        else:
            ours[target] = value.squeeze(1) if name.endswith("conv.weight") else value
    for target, rows in scalars.items():
        if sorted(rows) == list(range(len(SCALES))):
            ours[target] = torch.stack([rows[index] for index in range(len(SCALES))])
    model = Mantis(config)
    expected = model.state_dict()
    for name, value in ours.items():
        if name in expected and expected[name].shape != value.shape:
            raise InputError(
                "the checkpoint's sizes do not make an encoder",
                why=f"{name}: {tuple(value.shape)} instead of {tuple(expected[name].shape)}",
            )
    missing = sorted(set(expected) - set(ours))
    unexpected = sorted(left + [name for name in ours if name not in expected])
    report = ImportReport(config.version, missing, unexpected)
    if strict and (missing or unexpected):
        raise InputError(
            "the checkpoint does not match the architecture",
            why=f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}",
            remedy="pass --no-strict to keep what fits (missing parameters stay random)",
        )
    model.load_state_dict({name: value.float() for name, value in ours.items() if name in expected}, strict=False)
    return model.eval(), report


def _config(state: dict[str, Tensor]) -> MantisConfig:
    try:
        hidden, _, kernel = state["tokgen_unit.convs.0.conv.weight"].shape
        layers = 1 + max(
            int(m[1]) for name in state if (m := re.match(r"transf_unit\.transformer\.layers\.(\d+)\.", name))
        )
        v2 = "transf_unit.transformer.layers.0.attention.wQKV.weight" in state
        base = MantisConfig.preset("v2" if v2 else "v1")
        prefix = "transf_unit.transformer.layers.0."
        inner = state[prefix + ("attention.wO.weight" if v2 else "0.fn.to_out.0.weight")].shape[1]
        mlp = state[prefix + ("mlp.2.weight" if v2 else "1.fn.net.3.weight")].shape[1]
    except (KeyError, ValueError) as error:
        raise InputError(
            "the checkpoint is not one of Mantis",
            why="its tensors do not carry Mantis' names",
            remedy="name a checkpoint of Mantis-8M, Mantis+, UTICA or MantisV2",
        ) from error
    return dataclasses.replace(
        base,
        hidden=int(hidden),
        conv_kernel=int(kernel),
        layers=layers,
        head_dim=int(inner) // base.heads,
        mlp_dim=int(mlp),
        seq_len=base.seq_len if v2 else (int(kernel) - 1) * base.num_patches,
    )


def _target(name: str, version: str) -> str | tuple[str, int] | None:
    for index, branch in enumerate(("differences", "values")):
        for theirs, ours in _SIMPLE.items():
            if name == theirs.format(i=index):
                return ours.format(branch=branch)
    if match := re.fullmatch(r"tokgen_unit\.scalar_encoders\.([01])\.encoders\.(\d+)\.(.+)", name):
        which = ("mean", "std")[int(match[1])]
        return (f"tokens.{which}.{_SCALAR[match[3]]}", int(match[2])) if match[3] in _SCALAR else None
    if match := re.fullmatch(r"tokgen_unit\.linear_encoder\.(linear|layer_norm)\.(weight|bias)", name):
        return f"tokens.{'mix' if match[1] == 'linear' else 'norm'}.{match[2]}"
    if name == "transf_unit.cls_token":
        return "cls_token"
    if match := re.fullmatch(r"prj\.([01])\.(weight|bias)", name):
        return f"projector.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"transf_unit\.transformer\.layers\.(\d+)\.(.+)\.(weight|bias|scale)", name):
        if match[3] == "scale":
            return f"layers.{match[1]}.{match[2]}.gain" if match[2] in ("norm1", "norm2") else None
        part = (_LAYER_V1 if version == "v1" else _LAYER_V2).get(match[2])
        return f"layers.{match[1]}.{part}.{match[3]}" if part else None
    return None


def _computed(name: str) -> bool:
    """Tables the original keeps in its state that follow from the architecture."""
    return name.endswith(".scales") or "rotary_emb" in name or name.endswith("pos_encoder.pe")
