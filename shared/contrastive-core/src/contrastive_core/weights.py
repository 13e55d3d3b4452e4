"""Model weights on disk: ``model.safetensors`` beside ``model.json``, never a pickle."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, write_json

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def save_weights(folder: Path | str, state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Write tensors and what they are.

    Args:
        folder: Where ``model.safetensors`` and ``model.json`` go; made if missing.
        state: Tensors by name.
        description: Anything JSON can hold that is needed to build the model again.

    Raises:
        InputError: The folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
        digest = _sha256(temporary)
    write_json(folder / DESCRIPTION, {**description, "weights_sha256": digest})


def load_weights(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read tensors and description back.

    Returns:
        ``(state, description)``, tensors on the CPU.

    Raises:
        InputError: A file is missing or corrupt, or the two are not of one save.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the model folder is missing", where=folder, remedy="check the path")
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
    if _sha256(path) != description["weights_sha256"]:
        raise InputError(
            "the model's weights are corrupt",
            where=path,
            why="their checksum differs from the one in model.json",
            remedy="restore both files from one copy, or train again",
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError("the model's weights cannot be read", where=path, why=str(error)) from error
    return state, {name: value for name, value in description.items() if name != "weights_sha256"}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
