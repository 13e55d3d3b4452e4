"""Prepared volumes of cases, a share of them kept in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from contrastive_core.errors import InputError
from monai.data.dataset import CacheDataset
from monai.transforms.transform import Transform
from torch import Tensor

from cl_medical.volumes.cases import Case
from cl_medical.volumes.plan import DataPlan


@runtime_checkable
class Volumes(Protocol):
    """Images ``[1 x y z]`` and label maps ``[x y z]`` on the network's grid: a list, or a MONAI data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | None]: ...


class LoadCase(Transform):
    """A case's image and label map as a transform, so that MONAI caches the result."""

    def __init__(self, plan: DataPlan, *, labelled: bool) -> None:
        self.plan, self.labelled = plan, labelled

    def __call__(self, data: Case) -> tuple[Tensor, Tensor | None]:
        """Read and prepare."""
        return self.plan.load(data, labelled=self.labelled)


class CachedVolumes:
    """Prepared volumes of cases, a share of them kept in memory by MONAI's ``CacheDataset``.

    Args:
        cases: The cases.
        plan: How they are read.
        labelled: Whether their labels are read.
        rate: Share kept in memory; the others are read again each time.

    Raises:
        InputError: A case cannot be used.
    """

    def __init__(self, cases: Sequence[Case], plan: DataPlan, *, labelled: bool, rate: float = 1.0) -> None:
        load = LoadCase(plan, labelled=labelled)
        with _own_errors():
            # Filled here and not by MONAI's pool: its threads, still reading while an error ends the process, abort it.
            self._data = CacheDataset(list(cases), load, cache_rate=rate, runtime_cache="threads")
            for index in range(self._data.cache_num):
                self._data[index]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | None]:
        with _own_errors():
            image, label = self._data[index]
        return image, label


@contextmanager
def _own_errors() -> Iterator[None]:
    """MONAI wraps what a transform raises; what the user can mend is raised as it was."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
