"""From sets of images to what a run trains on and is evaluated on."""

from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import InputError

from cl_foundations.cfa.system import Settings
from cl_foundations.images.reading import OnCorrupt, has_parts, read_images, read_parts
from cl_foundations.images.sets import ImageSet, Split


def read_training(
    data: Path, settings: Settings, *, on_corrupt: OnCorrupt = "refuse"
) -> tuple[ImageSet, ImageSet | None]:
    """Training images, and test images where the set has such a part.

    Both are read before training, so that a test image that cannot be read is not discovered after it.

    Args:
        data: Images as :func:`read_images` takes them.
        settings: Settings of the run.
        on_corrupt: As :func:`read_images`.

    Returns:
        Training images, and test images or ``None``; somewhat larger than the network's input where that is not tiny,
        as views are cut from them.

    Raises:
        InputError: As :func:`read_images`.
    """
    size = settings.model.image_size
    side = size if size <= 64 else round(size * 8 / 7)
    if has_parts(data):
        return read_parts(data, side, on_corrupt=on_corrupt)
    return read_images(data, side, on_corrupt=on_corrupt), None


def training_part(data: Path) -> Split:
    """The part that is trained on: all of a set without a training and a test part."""
    return "train" if has_parts(data) else "all"


def read_others(paths: Sequence[Path], side: int, *, on_corrupt: OnCorrupt = "refuse") -> dict[str, ImageSet]:
    """Sets by the last part of their path, or by the whole path where several sets end alike."""
    names = [path.resolve().name for path in paths]
    return {
        name if names.count(name) == 1 else str(path): read_images(path, side, on_corrupt=on_corrupt)
        for name, path in zip(names, paths, strict=True)
    }


def class_pair(images: ImageSet, names: tuple[str, str]) -> tuple[int, int]:
    """Indices of two classes by name.

    Raises:
        InputError: The images have no labels, no such class, or none of it; the two are one.
    """
    labels = images.labelled("separating two classes")
    for name in names:
        if name not in images.classes:
            raise InputError(
                "there is no such class",
                where="--between",
                why=f"got {name}",
                remedy=f"two of {', '.join(images.classes[:20])}",
            )
        if not (labels == images.classes.index(name)).any():
            raise InputError("the class has no image in this part", where="--between", why=f"got {name}")
    if names[0] == names[1]:
        raise InputError("two different classes are needed", where="--between", why=f"got {names[0]} twice")
    first, second = (images.classes.index(name) for name in names)
    return first, second
