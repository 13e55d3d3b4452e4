"""Store packed codes and search them by Hamming distance.

:func:`build_index` makes an index, :func:`open_index` opens one; both return a :class:`CodeIndex`. A location is a
folder (kept by LanceDB, searched in memory), or ``http://host:19530#collection`` for a Milvus server, or a file
``NAME.db`` for Milvus embedded in this process.
"""

from pathlib import Path

from contrastive_core.index.interface import MODALITIES, CodeIndex, CodeModel, Hit, IndexInfo, Items, Modality

__all__ = [
    "MODALITIES",
    "CodeIndex",
    "CodeModel",
    "Hit",
    "IndexInfo",
    "Items",
    "Modality",
    "build_index",
    "open_index",
]


def build_index(location: str | Path, model: CodeModel, items: Items, *, overwrite: bool = False) -> CodeIndex:
    """Make an index of items; none of them is allowed (codes of shape ``[0 bytes]``).

    Args:
        location: Folder, ``NAME.db`` or Milvus URI.
        model: What made the codes.
        items: Its first items. Whether they have features decides whether the index keeps features.
        overwrite: Replace an index that is there. Until the new one is complete, the old one is read.

    Raises:
        InputError: There is an index already, the location is something else, or the items are refused
            (see :meth:`CodeIndex.add`).
    """
    server = _server(location)
    if server is not None:
        from contrastive_core.index.milvus import MilvusIndex

        return MilvusIndex.build(*server, model, items, overwrite=overwrite)
    from contrastive_core.index.embedded import EmbeddedIndex

    return EmbeddedIndex.build(Path(location), model, items, overwrite=overwrite)


def open_index(location: str | Path, model: CodeModel | None = None) -> CodeIndex:
    """Open an index.

    Args:
        location: Folder, ``NAME.db`` or Milvus URI.
        model: The model whose codes will be searched or added; refused unless it is the one the index was made with.

    Raises:
        InputError: There is no index, its files are damaged, or it was made with another model or code length (both
            are named).
    """
    server = _server(location)
    index: CodeIndex
    if server is not None:
        from contrastive_core.index.milvus import MilvusIndex

        index = MilvusIndex(*server)
    else:
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
