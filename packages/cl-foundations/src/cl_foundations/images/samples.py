"""Real images that come with scikit-learn: handwritten digits, and crops of two photographs."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from contrastive_core.files import refuse_filled, writing
from PIL import Image

CROP_SIDE = 64


def write_samples(out: Path | str, *, overwrite: bool = False) -> list[Path]:
    """Write the sample images.

    ``digits``: the 1,797 handwritten digits of the UCI test set (8 × 8 grey), ``train`` (four fifths of every class)
    and ``test``, one folder a class. ``photographs``: 120 crops of 64 × 64 pixels from two photographs (a temple, a
    flower), in one flat folder, as images that are no digits.

    Args:
        out: Folder to write to.
        overwrite: Replace sets that are already there.

    Returns:
        The two folders.

    Raises:
        InputError: A set is already there.
    """
    makers = {"digits": _digits, "photographs": _photographs}
    folders = [Path(out) / name for name in makers]
    for folder in folders:
        refuse_filled(folder, overwrite)
    for folder, make in zip(folders, makers.values(), strict=True):
        # Written beside and renamed as a whole: a set is either complete or not there.
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
                fresh = Path(temporary) / folder.name
                make(fresh)
                if folder.is_symlink():
                    folder.unlink()
                elif folder.exists():
                    shutil.rmtree(folder)
                fresh.rename(folder)
    return folders


def _digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for label in range(10):
        for place, index in enumerate(np.flatnonzero(digits.target == label)):
            part = "test" if place % 5 == 4 else "train"
            _save(pixels[index], folder / part / str(label) / f"{index:04d}.png")


def _photographs(folder: Path) -> None:
    from sklearn.datasets import load_sample_image

    for name, file in (("temple", "china.jpg"), ("flower", "flower.jpg")):
        image = load_sample_image(file)
        height, width, _ = image.shape
        for row in range(0, height - CROP_SIDE + 1, CROP_SIDE):
            for column in range(0, width - CROP_SIDE + 1, CROP_SIDE):
                crop = image[row : row + CROP_SIDE, column : column + CROP_SIDE]
                _save(crop, folder / f"{name}-{row:03d}-{column:03d}.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG")
