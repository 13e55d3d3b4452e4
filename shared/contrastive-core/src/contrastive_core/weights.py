"""Model weights on disk: ``model.safetensors`` beside ``model.json``, never a pickle."""

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from contrastive_core.errors import InputError, reason
from contrastive_core.files import atomic_write, read_json, reading, write_json

T = TypeVar("T")

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def save_weights(
    folder: Path | str | os.PathLike[str], state: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """Write tensors and what they are.

    Args:
        folder: Where ``model.safetensors`` and ``model.json`` go, a run folder for instance; made if missing.
        state: Tensors by name.
        description: Anything JSON can hold that is needed to build the model again; ``kind`` names what it is.

    Raises:
        InputError: The folder cannot be written.
        ValueError: The description has no ``kind``.
    """
    from safetensors.torch import save_file

    if "kind" not in description:
        raise ValueError("a model's description names its kind")
    folder = Path(folder)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
        digest = _sha256(temporary)
    write_json(folder / DESCRIPTION, {**description, "weights_sha256": digest})


def load_weights(folder: Path | str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tensors and description back.

    Returns:
        ``(state, description)``, tensors on the CPU.

    Raises:
        InputError: A file is missing or corrupt, or the two are not of one save.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the model folder is missing", where=folder, remedy="check the path")
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            "the folder holds no model",
            where=folder,
            why=f"there is no {DESCRIPTION}",
            remedy="name a run whose training has ended, or end it with --resume",
        )
    description = read_json(folder / DESCRIPTION)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError("the model's weights are missing", where=path, remedy="restore the file, or train again")
    if not isinstance(description, dict) or "weights_sha256" not in description:
        raise InputError(
            "the model's description is not one of ours",
            where=folder / DESCRIPTION,
            why="it holds no checksum of the weights",
            remedy="restore the file, or train again",
        )
    with reading(path, "the model's weights cannot be read"):
        digest = _sha256(path)
    if digest != description["weights_sha256"]:
        raise InputError(
            "the model's weights are corrupt",
            where=path,
            why="their checksum differs from the one in model.json",
            remedy="restore both files from one copy, or train again",
        )
    return read_tensors(path), {name: value for name, value in description.items() if name != "weights_sha256"}


def load_model(
    folder: Path | str | os.PathLike[str],
    kind: str | Sequence[str],
    build: Callable[[dict[str, Any], dict[str, Any]], T],
    *,
    made_by: str,
) -> T:
    """Build a model from a folder written by :func:`save_weights`.

    Args:
        folder: The folder.
        kind: The ``kind``, or kinds, that can be built.
        build: Makes the model of ``(state, description)``; what it raises on values that do not fit becomes one error.
        made_by: The command that writes such folders, for the remedy.

    Raises:
        InputError: The folder holds nothing, something corrupt, or another kind of model.
    """
    state, description = load_weights(folder)
    kinds = [kind] if isinstance(kind, str) else list(kind)
    if description.get("kind") not in kinds:
        raise InputError(
            f"the folder holds no {' or '.join(kinds)}",
            where=folder,
            why=f"it holds {description.get('kind', 'something unnamed')}",
            remedy=f"name a folder made by `{made_by}`",
        )
    try:
        return build(state, description)
    except InputError as error:
        raise InputError(error.what, where=folder, why=error.why, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, MemoryError) as error:
        raise InputError(
            "the model's description and weights do not fit together",
            where=folder,
            why=reason(error),
            remedy=f"restore the folder, or make it anew with `{made_by}`",
        ) from error


def read_tensors(path: Path | str) -> dict[str, Any]:
    """Tensors of a ``.safetensors`` file, or of a torch file without running any code in it.

    A ``state_dict`` or ``model`` inside a checkpoint is taken; entries that are no tensors are left out.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        InputError: The file is missing, unreadable, holds no tensors, or would run code when loaded.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError("the file of weights is missing", where=path, remedy="check the path")
    with reading(path, "the weights cannot be read", "pass .safetensors, or a torch file that holds tensors only"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        try:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                "the file of weights was refused",
                where=path,
                why="it holds more than tensors, and loading it could run foreign code",
                remedy="use its .safetensors form",
            ) from error
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    tensors = (
        {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if isinstance(state, dict)
        else {}
    )
    if not tensors:
        raise InputError("the file holds no tensors by name", where=path, remedy="pass a state dict")
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
