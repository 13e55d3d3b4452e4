"""Choices of the method, and the presets that make them: the corrected form, and the published code's."""

import dataclasses
from typing import Literal, NamedTuple

from contrastive_core.errors import InputError, require
from contrastive_core.nn.prototypes import Gradient

from cl_medical.mpcl.ihpg import Assignment, PrototypeSettings, Seeding
from cl_medical.mpcl.objective import Positives, Reliability
from cl_medical.volumes.patches import Crop

Method = Literal["mpcl", "upcol", "mean-teacher", "ua-mt", "sup"]
Preset = Literal["corrected", "paper-code"]
Match = Literal["intensity", "hungarian", "index"]


class Choices(NamedTuple):
    """What a preset decides; :class:`ObjectiveSettings` says what each is."""

    k: int
    assignment: Assignment
    gradient: Gradient
    max_voxels: int
    match: Match
    reliability: Reliability
    self_negative: bool
    masked: bool
    unlabelled_crop: Crop
    contrast: float


PRESETS: dict[Preset, Choices] = {
    "corrected": Choices(3, "sharp", "means", 20_000, "intensity", "log-c", False, True, "random", 1.0),
    "paper-code": Choices(3, "official", "iterations", 0, "index", "sum", True, False, "centre", 1.0),
}
"""The published code's behaviours are the README's rows with a star."""


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The method and its choices; those that are absent follow the preset.

    Attributes:
        method: mpcl, upcol (one prototype, no contrast), mean-teacher, ua-mt, or sup (labelled cases only).
        preset: corrected, or paper-code with every behaviour of the published code.
        k: Prototypes of a class; 1 is the mean of the class.
        assignment: Of soft k-means: sharp keeps prototypes apart, official is published and moves them to one mean.
        gradient: Of prototypes: means (assignments are constants) or iterations (through all of k-means).
        max_voxels: Voxels of a class in k-means, 0 for all.
        match: How labelled and unlabelled prototypes correspond: intensity, hungarian (cosine), or index (the rank of
            their peak).
        reliability: Trust in pseudo-labels: log-c, or sum, the published form.
        self_negative: Keep a prototype's similarity to itself in the contrast's denominator.
        masked: Leave classes out that a patch does not hold; else they enter as zeros.
        unlabelled_crop: Where unlabelled patches are cut: random, or centre.
        contrast: Weight of the contrast between prototypes; 0 leaves it out.
        seeding: Where k-means starts: intensity (histogram peaks), random, or k-means (features far apart).
        positives: Of the contrast: all prototypes of the class, or same-index.
        scale: Factor on the cosines of the prototype classifier, 1 as published.
        alignment: Weight of the prototype classifier's cross-entropies; 0 leaves them out.
        bins: Bins of the intensity histogram.
        gap: Smallest distance of two seeds on the intensity axis, 0 to 1.
        iterations: Soft k-means iterations.
        spatial_weight: Weight of coordinates in k-means.
        temperature: Temperature of the contrast.
        ramp: Share of the run over which unlabelled terms rise to their full weight.
        ema: Decay of the teacher.
        consistency: Largest weight of the consistency term of mean-teacher and ua-mt.
    """

    method: Method = "mpcl"
    preset: Preset = "corrected"
    k: int | None = None
    assignment: Assignment | None = None
    gradient: Gradient | None = None
    max_voxels: int | None = None
    match: Match | None = None
    reliability: Reliability | None = None
    self_negative: bool | None = None
    masked: bool | None = None
    unlabelled_crop: Crop | None = None
    contrast: float | None = None
    seeding: Seeding = "intensity"
    positives: Positives = "class"
    scale: float = 1.0
    alignment: float = 1.0
    bins: int = 100
    gap: float = 0.15
    iterations: int = 10
    spatial_weight: float = 0.01
    temperature: float = 0.1
    ramp: float = 0.75
    ema: float = 0.99
    consistency: float = 0.1

    def __post_init__(self) -> None:
        weight = "a number from 0 to 1000000"
        for name in ("contrast", "alignment", "consistency"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1e6, f"--{name}", value, weight)
        require(0 < self.scale <= 1e6, "--scale", self.scale, "a positive number, at most 1000000")
        require(0 < self.temperature <= 1e6, "--temperature", self.temperature, "a positive number, at most 1000000")
        require(0 < self.ramp <= 1, "--ramp", self.ramp, "a share in (0, 1]")
        require(0 <= self.ema < 1, "--ema", self.ema, "a decay in [0, 1)")
        if self.method == "upcol" and (self.k not in (None, 1) or self.contrast not in (None, 0)):
            raise InputError(
                "upcol has one prototype a class and no contrast", where="--k, --contrast", remedy="use --method mpcl"
            )
        _ = self.prototypes  # checks the rest

    @property
    def choices(self) -> Choices:
        """What is given, else what the preset says."""
        given = {name: getattr(self, name) for name in Choices._fields if getattr(self, name) is not None}
        if self.method == "upcol":
            given |= {"k": 1, "contrast": 0.0}
        return PRESETS[self.preset]._replace(**given)

    @property
    def prototypes(self) -> PrototypeSettings:
        """How prototypes are made."""
        chosen = self.choices
        return PrototypeSettings(
            chosen.k,
            self.bins,
            self.gap,
            self.iterations,
            self.spatial_weight,
            self.seeding,
            chosen.assignment,
            chosen.gradient,
            chosen.max_voxels,
        )

    @property
    def needs_unlabelled(self) -> bool:
        """Whether unlabelled volumes are looked at."""
        return self.method != "sup"
