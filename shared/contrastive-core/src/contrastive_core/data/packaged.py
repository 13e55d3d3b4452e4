"""Data that come with installed packages."""

import importlib.util
from pathlib import Path


def packaged(package: str, inside: str = "") -> Path | None:
    """A file or folder of an installed package, found without importing it.

    Args:
        package: Import name.
        inside: Path below the package.

    Returns:
        The path, or ``None`` where the package is not installed or has no such path.

    Example:
        >>> packaged("sklearn", "datasets/data").name
        'data'
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / inside).exists():
            return path
    return None
