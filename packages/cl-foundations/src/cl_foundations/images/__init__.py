"""Sets of images: reading, random views, corruptions, samples. Names are loaded when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_foundations.images.arrays import image_set as image_set
    from cl_foundations.images.corruptions import corrupt as corrupt
    from cl_foundations.images.reading import OnCorrupt as OnCorrupt
    from cl_foundations.images.reading import has_parts as has_parts
    from cl_foundations.images.reading import read_images as read_images
    from cl_foundations.images.reading import read_parts as read_parts
    from cl_foundations.images.samples import write_samples as write_samples
    from cl_foundations.images.sets import ImageSet as ImageSet
    from cl_foundations.images.sets import Split as Split
    from cl_foundations.images.views import ViewSettings as ViewSettings
    from cl_foundations.images.views import random_view as random_view
    from cl_foundations.images.views import two_views as two_views

_HOME = {
    "arrays": ("image_set",),
    "corruptions": ("corrupt",),
    "reading": ("OnCorrupt", "has_parts", "read_images", "read_parts"),
    "samples": ("write_samples",),
    "sets": ("ImageSet", "Split"),
    "views": ("ViewSettings", "random_view", "two_views"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
