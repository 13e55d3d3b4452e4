"""What a run will do: every value that its settings leave open, derived from the data."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import read_json, write_json
from contrastive_core.tables import text_table
from contrastive_core.training import RunFolder

from cl_medical.mpcl.model import NetworkConfig
from cl_medical.mpcl.system import Settings
from cl_medical.volumes.cases import CaseSet, read_cases
from cl_medical.volumes.plan import PATCH_VOXELS, DataPlan, plan_depth
from cl_medical.volumes.splits import Split, make_split

_FILES = ("plan.json", "split.json")


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """A run before it starts.

    Attributes:
        cases: The folder.
        split: Which cases train, validate and test.
        data: How volumes are read and cut.
        network: Architecture with its depth.
        batch_size: Labelled patches a step.
        steps: Optimiser steps.
        sources: Where each item of :meth:`items` comes from.
    """

    cases: CaseSet
    split: Split
    data: DataPlan
    network: NetworkConfig
    batch_size: int
    steps: int
    sources: dict[str, str]

    def items(self) -> dict[str, Any]:
        """Name and value of everything that was decided."""
        parts = {f"{name} cases": len(names) for name, names in dataclasses.asdict(self.split).items()}
        left_out = len(self.cases.cases) - sum(parts.values())
        return parts | {
            "cases on no list, left out": left_out,
            "classes": list(self.data.classes),
            "value that does not count": self.data.ignore,
            "patch": list(self.data.patch),
            "stride": list(self.data.stride),
            "spacing": None if self.data.preprocessing.spacing is None else list(self.data.preprocessing.spacing),
            "scaling": self.data.preprocessing.scaling,
            "augment": self.data.augment,
            "network.downsamplings": self.network.depth,
            "batch_size": self.batch_size,
            "steps": self.steps,
        }

    def __str__(self) -> str:
        rows = [
            {"item": name, "value": _shown(value), "from": self.sources.get(name, "")}
            for name, value in self.items().items()
            if value not in (None, 0) or name.endswith("cases")
        ]
        return text_table(rows)

    def record(self, run: RunFolder) -> None:
        """Write ``plan.json`` and ``split.json``, or compare with those of a run that is resumed.

        Raises:
            InputError: The data are no longer those the run was started with.
        """
        for name, value in zip(_FILES, (self.items(), dataclasses.asdict(self.split)), strict=True):
            path = run.path / name
            plain = {key: list(entry) if isinstance(entry, tuple) else entry for key, entry in value.items()}
            if run.resuming and path.is_file() and read_json(path) != plain:
                raise InputError(
                    "the data are not those the run was started with",
                    where=path,
                    why=f"cases of {self.cases.folder} were added, removed or changed",
                    remedy="restore them, or start anew in another folder",
                )
            write_json(path, plain)


def make_plan(folder: Path | str, settings: Settings) -> TrainingPlan:
    """Look at a folder and decide what the settings leave open.

    Args:
        folder: Folder of cases.
        settings: What is given.

    Raises:
        InputError: The folder cannot be used, or settings and data do not fit.
    """
    cases = read_cases(folder)
    divisor = None if settings.network.downsamplings is None else settings.network.divisor
    data = DataPlan.resolve(settings.volumes, cases, divisor)
    split = make_split(cases, settings.split)
    _check(cases, split, settings)
    batch_size = batch_for(settings, data)
    per_epoch = max(1, len(split.labelled) * settings.repeats // batch_size)
    sources = {name: _source(name, settings, cases) for name in ("patch", "stride", "spacing", "scaling", "augment")}
    sources["classes"] = "option" if settings.volumes.classes else "dataset.json" if cases.classes else "label maps"
    sources["network.downsamplings"] = "the patch" if divisor is None else "option"
    sources["batch_size"] = "the patch" if settings.batch_size is None else "option"
    sources["steps"] = "option" if settings.training.steps is not None else "epochs"
    network = network_for(settings, data)
    return TrainingPlan(cases, split, data, network, batch_size, settings.training.total_steps(per_epoch), sources)


def network_for(settings: Settings, data: DataPlan) -> NetworkConfig:
    """The network, as deep as the patch bears where its depth is open."""
    depth = settings.network.downsamplings
    return dataclasses.replace(settings.network, downsamplings=plan_depth(data.patch) if depth is None else depth)


def batch_for(settings: Settings, data: DataPlan) -> int:
    """Labelled patches a step: 2 where they have no more voxels than a published patch, else 1."""
    if settings.batch_size is not None:
        return settings.batch_size
    return 2 if 2 * math.prod(data.patch) <= PATCH_VOXELS else 1


def _check(cases: CaseSet, split: Split, settings: Settings) -> None:
    method = settings.objective.method
    if settings.objective.needs_unlabelled and not split.unlabelled:
        raise InputError(
            f"{method} needs unlabelled cases",
            where=cases.folder,
            why=f"all {len(split.labelled)} training cases are used with their labels",
            remedy="add images without label maps, lower --labelled, or use --method sup",
        )
    if settings.select == "test" and not split.test:
        raise InputError("there are no test cases to choose the weights on", where="--select", remedy="raise --test")


def _source(name: str, settings: Settings, cases: CaseSet) -> str:
    if getattr(settings.volumes, name) is not None:
        return "option"
    if name in cases.settings:
        return "dataset.json"
    return {"patch": "the volumes", "stride": "the patch"}.get(name, "default")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return (" x " if all(isinstance(entry, int | float) for entry in value) else ", ").join(map(str, value))
    return str(value)
