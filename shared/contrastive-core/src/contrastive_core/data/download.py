"""Downloads that are checked by hash, archives that stay inside their folder."""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write

_CHUNK = 1 << 20


def fetch(url: str, *, sha256: str, to: Path | str, timeout: float = 30.0) -> Path:
    """Download a file unless it is already there, and check it.

    Args:
        url: ``https``, ``http`` or ``file`` address.
        sha256: Expected checksum, hexadecimal.
        to: Path of the file.
        timeout: Seconds without an answer after which the site counts as out of reach.

    Returns:
        ``to``.

    Raises:
        InputError: The address cannot be reached, or what came has another checksum; nothing is left on disk then.
    """
    to = Path(to)
    if to.is_file() and _digest(to) == sha256.lower():
        return to
    if not url.startswith(("https://", "http://", "file://")):
        raise InputError("the address cannot be downloaded", where=url, why="it is neither https, http nor file")
    by_hand = f"download it elsewhere and lay it at {to} (sha256 {sha256})"
    with atomic_write(to) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file, _CHUNK)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise InputError("a download failed", where=url, why=str(reason), remedy=by_hand) from error
        found = _digest(temporary)
        if found != sha256.lower():
            raise InputError(
                "a download has the wrong content", where=url, why=f"its sha256 is {found}", remedy=by_hand
            )
    return to


def safe_extract(archive: Path | str, to: Path | str, *, limit: int = 20 << 30) -> list[Path]:
    """Unpack a zip or tar archive of regular files.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz``.
        to: Folder to unpack into.
        limit: Most bytes the content may have.

    Returns:
        The files written.

    Raises:
        InputError: The archive is unreadable, reaches outside the folder, holds links or devices, or is too large.
            Names are checked before anything is written.
    """
    archive, to = Path(archive), Path(to)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                entries = [entry for entry in bundle.infolist() if not entry.is_dir()]
                names = [entry.filename for entry in entries]
                links = [entry.filename for entry in entries if (entry.external_attr >> 28) == 0o12]
                targets = _check(archive, to, names, links, sum(entry.file_size for entry in entries), limit)
                for entry, target in zip(entries, targets, strict=True):
                    with bundle.open(entry) as source, atomic_write(target) as out, out.open("wb") as file:
                        shutil.copyfileobj(source, file, _CHUNK)
            return targets
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if not member.isdir()]
            links = [member.name for member in members if not member.isfile()]
            names = [member.name for member in members]
            targets = _check(archive, to, names, links, sum(member.size for member in members), limit)
            for member, target in zip(members, targets, strict=True):
                stream = tar.extractfile(member)
                assert stream is not None
                with stream, atomic_write(target) as out, out.open("wb") as file:
                    shutil.copyfileobj(stream, file, _CHUNK)
        return targets
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, FileNotFoundError) as error:
        raise InputError("the archive cannot be read", where=archive, why=str(error)) from error


def _check(archive: Path, to: Path, names: list[str], links: list[str], size: int, limit: int) -> list[Path]:
    if links:
        raise InputError("the archive was refused", where=archive, why=f"{links[0]} is a link or a device")
    if size > limit:
        raise InputError("the archive was refused", where=archive, why=f"{size} bytes unpacked, {limit} allowed")
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise InputError("the archive was refused", where=archive, why=f"{name} reaches outside the folder")
    return [to / name for name in names]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
