"""Which cases train with their labels, which without, which choose the weights, and which are held out."""

import dataclasses
from pathlib import Path

import numpy as np
from contrastive_core.errors import InputError, require

from cl_medical.volumes.cases import LISTS, CaseSet


@dataclasses.dataclass(frozen=True)
class SplitSettings:
    """How many cases each part gets.

    Attributes:
        labelled: Labelled cases to train with; the others train as unlabelled.
        validation: Cases that choose the checkpoint. If absent: those of val.txt; without split lists a tenth of the
            labelled ones.
        test: Cases held out. If absent: those of test.txt; without split lists a fifth of the labelled ones.
        split_seed: Seed of the split, where the folder has no split lists.
    """

    labelled: int = 4
    validation: int | None = None
    test: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        require(self.labelled >= 1, "--labelled", self.labelled, "at least 1: training needs a labelled case")
        for name in ("validation", "test"):
            count = getattr(self, name)
            require(count is None or count >= 0, f"--{name}", count, "a number that is not negative")
        require(self.split_seed >= 0, "--split-seed", self.split_seed, "a number that is not negative")


@dataclasses.dataclass(frozen=True)
class Split:
    """Names of the cases of every part.

    Attributes:
        labelled: Training cases whose labels are used.
        unlabelled: Training cases whose labels, if any, are not looked at.
        validation: Cases that choose the checkpoint.
        test: Cases nothing is chosen on.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, names in dataclasses.asdict(self).items():
            for name in names:
                if name in seen:
                    raise InputError(
                        "a case stands in two splits",
                        where=name,
                        why=f"in {seen[name]} and {part}" if seen[name] != part else f"twice in {part}",
                        remedy="name it in one list only",
                    )
                seen[name] = part


def make_split(data: CaseSet, settings: SplitSettings = SplitSettings()) -> Split:
    """Fix the parts: by the folder's lists where it has them, else by a seeded draw of whole patients.

    With a list of labelled training cases its first ones train with their labels, and what no list names is left out;
    parts without a list are empty, except that ``validation`` takes the last cases of the labelled list. With lists of
    other parts only, the rest is drawn.

    Args:
        data: The cases.
        settings: Sizes of the parts and the seed of the draw.

    Raises:
        InputError: There are not as many labelled cases, a patient stands in two lists, or a size is given for a part
            that a list fixes.
    """
    for part, count in (("validation", settings.validation), ("test", settings.test)):
        fixed = part if part in data.lists else "labelled" if part == "test" and count else ""
        if count is not None and fixed in data.lists:
            raise InputError(
                "the folder's lists fix this part",
                where=f"--{part}",
                why=f"{data.list_files[fixed]} is there",
                remedy="leave the option out, or remove the list",
            )
    _check_labels(data)
    split = _listed(data, settings) if "labelled" in data.lists else _drawn(data, settings)
    _check_patients(data, split)
    return split


def _listed(data: CaseSet, settings: SplitSettings) -> Split:
    labelled, validation = settings.labelled, settings.validation or 0
    lists = {part: list(data.lists.get(part, ())) for part in LISTS}
    with_label = [name for name in lists["labelled"] if data.cases[name].label is not None]
    _enough(len(with_label) - validation, labelled, data.list_files["labelled"])
    held = with_label[len(with_label) - validation :]
    rest = [name for name in lists["labelled"] if name not in {*with_label[:labelled], *held}]
    return Split(
        tuple(with_label[:labelled]),
        (*rest, *lists["unlabelled"]),
        (*lists["validation"], *held),
        tuple(lists["test"]),
    )


def _check_labels(data: CaseSet) -> None:
    for part in ("validation", "test"):
        for name in data.lists.get(part, ()):
            if data.cases[name].label is None:
                raise InputError(
                    f"a {part} case has no label", where=name, why=f"it is listed in {data.list_files[part]}"
                )


def _drawn(data: CaseSet, settings: SplitSettings) -> Split:
    listed = {part: tuple(data.lists.get(part, ())) for part in LISTS}
    free = [case for case in data.cases.values() if not any(case.name in names for names in listed.values())]
    with_label = [case for case in free if case.label is not None]
    without = [*(case.name for case in free if case.label is None), *listed["unlabelled"]]
    wanted = {"labelled": settings.labelled}
    for part, count, share in (("test", settings.test, 5), ("validation", settings.validation, 10)):
        drawn = len(with_label) // share if count is None else count
        wanted[part] = 0 if part in data.lists else drawn
    blind = {data.cases[name].patient for name in without}
    groups: dict[str, list[str]] = {}
    for case in with_label:
        groups.setdefault(case.patient, []).append(case.name)
    order = [sorted(groups)[index] for index in np.random.default_rng(settings.split_seed).permutation(len(groups))]
    parts: dict[str, list[str]] = {part: [] for part in wanted}
    unlabelled = list(without)
    for patient in order:
        names = groups[patient]
        # A patient with an unlabelled scan trains: judging on the labelled one would leak.
        options = ("labelled",) if patient in blind else ("test", "validation", "labelled")
        room = [part for part in options if len(parts[part]) + len(names) <= wanted[part]]
        (parts[room[0]] if room else unlabelled).extend(names)
    _enough(len(parts["labelled"]), settings.labelled, data.folder)
    return Split(
        tuple(parts["labelled"]),
        tuple(unlabelled),
        (*listed["validation"], *parts["validation"]),
        (*listed["test"], *parts["test"]),
    )


def _check_patients(data: CaseSet, split: Split) -> None:
    where: dict[str, str] = {}
    for part, names in (
        ("training", (*split.labelled, *split.unlabelled)),
        ("validation", split.validation),
        ("test", split.test),
    ):
        for name in names:
            patient = data.cases[name].patient
            if where.setdefault(patient, part) != part:
                raise InputError(
                    "a patient stands in two splits",
                    where=name,
                    why=f"patient {patient} is in {where[patient]} and {part}",
                    remedy="keep all scans of a patient in one list",
                )


def _enough(count: int, wanted: int, where: Path) -> None:
    if count < wanted:
        raise InputError(
            "there are fewer labelled cases than asked for" if count else "there is no labelled case to train on",
            where=where,
            why=f"{count} for training, {wanted} asked for",
            remedy="lower --labelled, --validation or --test, or add label maps",
        )
