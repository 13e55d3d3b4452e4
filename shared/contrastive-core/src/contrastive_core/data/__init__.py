"""Getting data and drawing from it: checked downloads, samplers, views, divisions.

Names are loaded when they are first used: importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from contrastive_core.data.download import fetch as fetch
from contrastive_core.data.download import safe_extract as safe_extract
from contrastive_core.data.packaged import packaged as packaged

if TYPE_CHECKING:
    from contrastive_core.data.partition import group_split as group_split
    from contrastive_core.data.partition import partition_dirichlet as partition_dirichlet
    from contrastive_core.data.partition import partition_shards as partition_shards
    from contrastive_core.data.partition import stratified_split as stratified_split
    from contrastive_core.data.samplers import MPerClassSampler as MPerClassSampler
    from contrastive_core.data.samplers import Order as Order
    from contrastive_core.data.samplers import ShuffledBatches as ShuffledBatches
    from contrastive_core.data.samplers import TwoStreamSampler as TwoStreamSampler
    from contrastive_core.data.samplers import UniqueIdBatchSampler as UniqueIdBatchSampler
    from contrastive_core.data.views import TwoView as TwoView
    from contrastive_core.data.views import ViewDataset as ViewDataset
    from contrastive_core.data.views import Views as Views

_HOME = {
    "partition": ("group_split", "partition_dirichlet", "partition_shards", "stratified_split"),
    "samplers": ("MPerClassSampler", "Order", "ShuffledBatches", "TwoStreamSampler", "UniqueIdBatchSampler"),
    "views": ("TwoView", "ViewDataset", "Views"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(["fetch", "packaged", "safe_extract", *_MODULE])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
