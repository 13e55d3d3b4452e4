"""Image files below a folder or in a .zip archive, which is read without being unpacked."""

import functools
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import reading

from cl_foundations.images.pixels import REMEDY

READ = ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
_NOT_READ = ".arw .cr2 .dcm .dng .eps .heic .heif .ico .nef .psd .svg .tga"
_BESIDE = ".csv .db .html .ini .json .jsonl .license .log .md .pdf .py .rst .sh .tsv .txt .xml .yaml .yml"
SUFFIXES = frozenset([*READ.split(), *_NOT_READ.split()])
"""Files that are images; those of the second kind are not passed over, but said to be unreadable."""
_COMPANIONS = frozenset(_BESIDE.split())
_COMPANION_NAMES = frozenset({"license", "readme", "copying", "makefile", "dockerfile", "sha256sums", "md5sums"})
_TABLES = ("labels.csv", "labels.tsv")
_FREE, _RATIO = 64 << 20, 100
"""Unpacked bytes that are never too many, and how many times the packed ones are; pictures pack worse."""


class FileSource:
    """Files below a folder or in an archive.

    Args:
        path: The folder or archive.

    Raises:
        InputError: The archive is damaged, or holds two files of one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        if self.path.is_dir():
            return None
        with reading(self.path, "the archive cannot be read"):
            return zipfile.ZipFile(self.path)

    @functools.cached_property
    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._archive.infolist() if self._archive is not None else ():
            name = entry.filename.replace("\\", "/")
            if name in entries:
                raise InputError("the archive holds two files of one name", where=self.path / name)
            if not name.endswith("/"):
                entries[name] = entry
        return entries

    def __getstate__(self) -> dict[str, Any]:
        """Without the open archive, for loader processes."""
        return {"path": self.path}

    @functools.cached_property
    def files(self) -> list[str]:
        """Relative paths of all files, sorted; hidden ones are left out, links are followed."""
        if self._archive is not None:
            names = [name for name in self._entries if not any(map(_hidden, PurePosixPath(name).parts))]
        else:
            with reading(self.path, "the folder cannot be read"):
                names = list(_walk(self.path, PurePosixPath(), frozenset()))
        return sorted(names)

    def images(self) -> list[str]:
        """Relative paths of the image files, sorted."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in SUFFIXES]

    def others(self) -> list[str]:
        """Files that are neither images nor what usually lies beside images."""
        return [name for name in self.files if not _expected(PurePosixPath(name))]

    def tables(self) -> list[str]:
        """Tables that give the images' labels."""
        return [name for name in self.files if PurePosixPath(name).name.lower() in _TABLES]

    def read(self, name: str) -> bytes:
        """Bytes of one file.

        Raises:
            InputError: It is gone, no ordinary file, or cannot be read.
        """
        where = self.path / name
        with reading(where, "an image cannot be read", REMEDY):
            if self._archive is not None:
                entry = self._entries[name]
                check_size(where, entry.file_size, entry.compress_size)
                return self._archive.read(entry)
            if not where.is_file():  # a pipe would be waited for
                why = "the link leads nowhere" if where.is_symlink() else "it is no ordinary file"
                raise InputError("an image cannot be read", where=where, why=why, remedy=REMEDY)
            return where.read_bytes()


def check_size(where: object, unpacked: int, packed: int) -> None:
    """Refuse packed data that would grow beyond what pictures do.

    Raises:
        InputError: They would.
    """
    if unpacked > max(_FREE, _RATIO * packed):
        raise InputError(
            "packed data are refused",
            where=where,
            why=f"{packed:,} bytes would become {unpacked:,}, which no pictures do",
            remedy="pack the images without compression",
        )


def same_name(name: str) -> str:
    """A file name in the form in which names are compared: composed characters, forward slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _walk(folder: Path, inside: PurePosixPath, above: frozenset[Path]) -> Iterator[str]:
    real = folder.resolve()
    if real in above:  # a link back to where we come from
        return
    for entry in sorted(folder.iterdir()):
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry, inside / entry.name, above | {real})
        else:
            yield (inside / entry.name).as_posix()


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _expected(path: PurePosixPath) -> bool:
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix in _COMPANIONS or path.name.lower() in _COMPANION_NAMES
