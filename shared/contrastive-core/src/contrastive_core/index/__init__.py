"""Store vectors and search them: packed codes by Hamming distance, floats by cosine or inner product.

:func:`build_index` makes an index, :func:`open_index` opens one; both return a :class:`VectorIndex`. A location is a
folder (kept by LanceDB), or ``http://host:19530#collection`` for a Milvus server, or a file ``NAME.db`` for Milvus
embedded in this process. The engines come with the extra ``contrastive-core[index]``.
"""

from importlib.util import find_spec
from pathlib import Path

from contrastive_core.errors import InputError
from contrastive_core.index.interface import (
    MODALITIES,
    Approximation,
    CodeModel,
    Hit,
    IndexInfo,
    Items,
    Modality,
    Model,
    Progress,
    VectorIndex,
    VectorModel,
)

__all__ = [
    "MODALITIES",
    "Approximation",
    "CodeModel",
    "Hit",
    "IndexInfo",
    "Items",
    "Modality",
    "Model",
    "VectorIndex",
    "VectorModel",
    "build_index",
    "open_index",
]


def build_index(
    location: str | Path, model: Model, items: Items, *, overwrite: bool = False, progress: Progress | None = None
) -> VectorIndex:
    """Make an index of items; none of them is allowed (vectors of shape ``[0 width]``).

    An embedded index of float vectors that a scan takes more than some 50 ms for is made approximate at once, see
    :meth:`VectorIndex.optimise`. Vectors and features are read in parts, so memory-mapped arrays may exceed the memory.

    Args:
        location: Folder, ``NAME.db`` or Milvus URI.
        model: What made the codes or vectors.
        items: Its first items. Whether they have features decides whether the index keeps features.
        overwrite: Replace an index that is there. Until the new one is complete, the old one is read.
        progress: Told how far the work is.

    Raises:
        InputError: There is an index already, the location is something else, the items are refused
            (see :meth:`VectorIndex.add`), or the extra ``index`` is not installed.
    """
    server = _server(location)
    if server is not None:
        _installed("pyarrow", "pymilvus")
        from contrastive_core.index.milvus import MilvusIndex

        return MilvusIndex.build(*server, model, items, overwrite=overwrite, progress=progress)
    _installed("pyarrow", "lancedb")
    from contrastive_core.index.embedded import EmbeddedIndex

    return EmbeddedIndex.build(Path(location), model, items, overwrite=overwrite, progress=progress)


def open_index(location: str | Path, model: Model | None = None) -> VectorIndex:
    """Open an index.

    Args:
        location: Folder, ``NAME.db`` or Milvus URI.
        model: The model whose codes or vectors will be searched or added; refused unless it is the one the index was
            made with.

    Raises:
        InputError: There is no index, its files are damaged, it was made with another model, length or metric (both
            models are named), or the extra ``index`` is not installed.
    """
    server = _server(location)
    index: VectorIndex
    if server is not None:
        _installed("pyarrow", "pymilvus")
        from contrastive_core.index.milvus import MilvusIndex

        index = MilvusIndex(*server)
    else:
        _installed("pyarrow", "lancedb")
        from contrastive_core.index.embedded import EmbeddedIndex

        index = EmbeddedIndex(Path(location))
    if model is not None:
        from contrastive_core.index.checks import check_model

        check_model(index.info().model, model, location)
    return index


def _server(location: str | Path) -> tuple[str, str] | None:
    """Address and collection of a Milvus location; None for a folder."""
    address, _, collection = str(location).partition("#")
    if "://" in address or address.endswith(".db"):
        return address, collection or "codes"
    return None


def _installed(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise InputError(
            "an index needs libraries that are not installed",
            why=f"{' and '.join(missing)} cannot be imported",
            remedy="pip install 'contrastive-core[index]'",
        )
