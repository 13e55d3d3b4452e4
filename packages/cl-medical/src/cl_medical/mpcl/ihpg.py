"""Intensity-histogram prototype generation (IHPG): K prototypes of every class in one image (official ``ASG.py``)."""

import dataclasses
from typing import Literal

import torch
from contrastive_core.distributed import gather, gather_with_grad
from contrastive_core.errors import require
from contrastive_core.nn import match_prototypes, soft_kmeans
from contrastive_core.nn.prototypes import Gradient
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cl_medical.mpcl.features import features_at, mean_feature

Assignment = Literal["sharp", "official"]
Seeding = Literal["intensity", "random", "k-means"]


@dataclasses.dataclass(frozen=True)
class PrototypeSettings:
    """How prototypes are found.

    Attributes:
        k: Prototypes of a class; 1 is the mean of the class.
        bins: Bins of the intensity histogram, at least 10 a prototype.
        gap: Smallest distance of two seeds on the intensity axis, which runs from 0 to 1.
        iterations: Soft k-means iterations.
        spatial_weight: Weight of the distance between coordinates in [-1, 1].
        seeding: ``intensity`` starts from the peaks of the histogram. To see what they are worth, ``random`` starts
            from any voxels of the class, ``k-means`` from voxels whose features lie far apart (k-means++).
        assignment: ``sharp`` (softmax of -10 D / mean D) keeps prototypes apart; ``official`` (exp(-sqrt D)) is the
            published form, under which they all move to the class mean.
        gradient: ``means`` takes the last assignment as a constant: a prototype is the weighted mean of its voxels'
            features. ``iterations`` differentiates through all of k-means, as published; under the sharp assignment
            single steps then have gradients far above those of the supervised loss.
        max_voxels: Random voxels of a class that enter k-means; 0 for all of them. Histograms use all voxels.
    """

    k: int = 3
    bins: int = 100
    gap: float = 0.15
    iterations: int = 10
    spatial_weight: float = 0.01
    seeding: Seeding = "intensity"
    assignment: Assignment = "sharp"
    gradient: Gradient = "means"
    max_voxels: int = 20_000

    def __post_init__(self) -> None:
        require(1 <= self.k <= 64, "--k", self.k, "1 to 64: a class needs at least one prototype")
        require(3 <= self.bins <= 100_000, "--bins", self.bins, "3 to 100000 bins")
        require(0 <= self.gap <= 1, "--gap", self.gap, "a distance in [0, 1]")
        require(1 <= self.iterations <= 10_000, "--iterations", self.iterations, "1 to 10000")
        require(
            0 <= self.spatial_weight < 1e6, "--spatial-weight", self.spatial_weight, "a number that is not negative"
        )
        require(self.max_voxels >= 0, "--max-voxels", self.max_voxels, "a number that is not negative")


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Prototypes of all classes.

    Attributes:
        centers: Feature vectors ``[c k d]``; zeros where the class is absent.
        intensity: Mean intensity of each prototype's voxels, ``[c k]``, in [0, 1].
        share: Share of the class's voxels that a prototype stands for, ``[c k]``; sums to 1 over k.
        present: Classes that were there, ``[c]``.
    """

    centers: Float[Tensor, "c k d"]
    intensity: Float[Tensor, "c k"]
    share: Float[Tensor, "c k"]
    present: Bool[Tensor, " c"]

    def sorted(self) -> "Prototypes":
        """Each class's prototypes in the order of their intensity, so that those of two images correspond."""
        return self.take(self.intensity.argsort(dim=1, stable=True))

    def matched(self, other: "Prototypes") -> "Prototypes":
        """Each class's prototypes in the order that pairs them best with those of another, by the sum of cosines."""
        return self.take(match_prototypes(other.centers, self.centers, match="hungarian"))

    def take(self, order: Int[Tensor, "c k"]) -> "Prototypes":
        """Each class's prototypes in another order."""
        rows = order[..., None].expand_as(self.centers)
        return Prototypes(
            self.centers.gather(1, rows), self.intensity.gather(1, order), self.share.gather(1, order), self.present
        )

    def detach(self) -> "Prototypes":
        """The same without gradient."""
        return dataclasses.replace(self, centers=self.centers.detach())


def scale_intensity(image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b x y z"]:
    """Min-max scaling of every image to [0, 1]; a constant image becomes zeros."""
    flat = image.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    span = (high - low).clamp_min(torch.finfo(image.dtype).eps)
    return ((flat - low[:, None]) / span[:, None]).clamp(0, 1).view(image[:, 0].shape)


def histogram_seeds(
    intensity: Float[Tensor, " n"], count: int, *, bins: int = 100, gap: float = 0.15
) -> Int[Tensor, " k"]:
    """Bins of the intensity histogram that seed the prototypes.

    Local maxima (or the highest bins, where there are too few maxima) are taken from the highest down, each at least
    ``gap`` from those before; what is missing is filled with the best of the rejected, then with any bin.

    Args:
        intensity: Values in [0, 1].
        count: Seeds wanted, K.
        bins: Bins on [0, 1], raised to 10 K; the last is closed.
        gap: Smallest distance between bin centres.

    Returns:
        Bin indices, in the order they were taken.

    Example:
        >>> values = torch.tensor([0.205] * 50 + [0.255] * 40 + [0.505] * 30 + [0.805] * 20)
        >>> histogram_seeds(values, 3).tolist()
        [20, 50, 80]
    """
    bins = max(bins, 10 * count)
    histogram = torch.bincount(_bin_of(intensity, bins), minlength=bins).tolist()
    peaks = [i for i in range(1, bins - 1) if histogram[i - 1] < histogram[i] > histogram[i + 1]]
    ranked = sorted(range(bins), key=lambda i: -histogram[i])
    if len(peaks) < count:
        peaks = [i for i in ranked[: 2 * count] if histogram[i] > 0]
    accepted: list[int] = []
    rejected: list[int] = []
    for peak in sorted(peaks, key=lambda i: -histogram[i]):
        # Half a thousandth of a bin: centres exactly `gap` apart count as apart, whatever the rounding.
        far = all(abs(peak - other) / bins >= gap - 5e-4 / bins for other in accepted)
        (accepted if far else rejected).append(peak)
    seeds = (accepted + rejected)[:count] if len(accepted) < count else accepted[:count]
    taken = set(seeds)
    seeds += [i for i in range(bins) if i not in taken][: count - len(seeds)]
    return torch.tensor(seeds, device=intensity.device)


def class_prototypes(
    x6: Float[Tensor, "d u v w"],
    intensity: Float[Tensor, "x y z"],
    mask: Bool[Tensor, "x y z"],
    settings: PrototypeSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Prototypes of one class in one image (steps 1 to 7 of IHPG).

    Args:
        x6: Feature map.
        intensity: Image scaled to [0, 1].
        mask: Voxels of the class.
        settings: K and the rest.
        generator: Draws seeds and voxels; on the CPU.

    Returns:
        Prototypes, their mean intensities, their shares. Without voxels all are zero; with fewer than K, the voxels'
        own features are repeated.
    """
    size, k = intensity.shape, settings.k
    voxels = mask.flatten().nonzero()[:, 0]
    count = len(voxels)
    if count == 0:
        return x6.new_zeros(k, len(x6)), intensity.new_zeros(k), intensity.new_zeros(k)
    values = intensity.flatten()[voxels]
    if count < k:
        rows = torch.arange(k, device=voxels.device) % count
        features = features_at(x6, size, voxels)
        return features[rows], values[rows], values.new_full((k,), 1 / k)
    if k == 1:
        return mean_feature(x6, mask)[None], values.mean()[None], values.new_ones(1)
    chosen = _some(count, settings.max_voxels, generator).to(voxels.device)
    features = features_at(x6, size, voxels[chosen])
    if settings.seeding == "intensity":
        seeds = _seed_voxels(values, settings, generator)
    elif settings.seeding == "random":
        seeds = torch.randperm(count, generator=generator)[:k].to(voxels.device)
    else:
        seeds = chosen[_far_apart(features.detach(), k, generator)]
    places = _coordinates(voxels, size, features)
    official = settings.assignment == "official"
    centers, assignment = soft_kmeans(
        features,
        features_at(x6, size, voxels[seeds]),
        iters=settings.iterations,
        assignment="l2" if official else "sharp",
        power=0.5,
        extra=places[chosen],
        init_extra=places[seeds],
        extra_weight=settings.spatial_weight,
        gradient=settings.gradient,
    )
    assignment = assignment.detach()
    mass = assignment.sum(0)
    return centers, (assignment.T @ values[chosen]) / mass, mass / mass.sum()


def ihpg(
    x6: Float[Tensor, "b d u v w"],
    image: Float[Tensor, "b 1 x y z"],
    labels: Int[Tensor, "b x y z"],
    classes: int,
    settings: PrototypeSettings,
    generator: torch.Generator,
    *,
    reliability: Float[Tensor, "b x y z"] | None = None,
    sort: bool = True,
    masked: bool = True,
    gather: bool = False,
) -> Prototypes:
    """Prototypes of every class, averaged over the images of a batch.

    Args:
        x6: Feature maps.
        image: Images; their intensities choose the seeds.
        labels: Class of every voxel; those below 0 are left out.
        classes: Classes C.
        settings: K and the rest.
        generator: Draws seeds and voxels; on the CPU.
        reliability: Voxels below 0.5 are left out.
        sort: Order each class's prototypes by intensity before averaging; otherwise by the rank of their peak.
        masked: Average over the images that hold a class; otherwise over all, the absent ones as zeros (published).
        gather: Average over the images of all processes, with exact gradients.
    """
    scaled = scale_intensity(image)
    use = None if reliability is None else reliability > 0.5
    parts = []
    for index in range(len(x6)):
        rows = []
        for label in range(classes):
            mask = labels[index] == label
            mask = mask if use is None else mask & use[index]
            rows.append((*class_prototypes(x6[index], scaled[index], mask, settings, generator), mask.any()))
        centers, intensity, share, present = (torch.stack(column) for column in zip(*rows, strict=True))
        part = Prototypes(centers, intensity.detach(), share.detach(), present)
        parts.append(part.sorted() if sort else part)
    return average(parts, masked=masked, over_processes=gather)


def average(parts: list[Prototypes], *, masked: bool = True, over_processes: bool = False) -> Prototypes:
    """Mean over images, the k-th with the k-th.

    Args:
        parts: Prototypes of each image.
        masked: Over the images a class is in; otherwise over all, as published.
        over_processes: The images of all processes.
    """
    if len(parts) == 1 and not over_processes:
        return parts[0]
    centers, intensity, share, present = (
        torch.stack([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Prototypes)
    )
    if over_processes:
        centers = gather_with_grad(centers.flatten(1)).view(-1, *centers.shape[1:])
        intensity, share, present = gather(intensity), gather(share), gather(present)
    counted = present if masked else torch.ones_like(present)
    weight = (counted / counted.sum(0).clamp_min(1)).to(centers)
    mean = [torch.einsum("bc,bc...->c...", weight, values) for values in (centers, intensity, share)]
    return Prototypes(mean[0], mean[1], mean[2], present.any(0))


def spread(centers: Float[Tensor, "c k d"]) -> Float[Tensor, " c"]:
    """Mean distance between a class's prototypes over their mean norm; 0 when they have collapsed, or K = 1."""
    k = centers.shape[1]
    if k == 1:
        return centers.new_zeros(len(centers))
    pairs = torch.cdist(centers, centers).sum((1, 2)) / (k * (k - 1))
    return pairs / centers.norm(dim=2).mean(1).clamp_min(1e-12)


def _some(count: int, most: int, generator: torch.Generator) -> Tensor:
    if most == 0 or count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most]


def _bin_of(values: Tensor, bins: int) -> Tensor:
    """Bin of every value in [0, 1]: the product in single precision, in which levels such as 0.29 reach their bin."""
    return (values.float() * bins).long().clamp(0, bins - 1)


def _seed_voxels(values: Tensor, settings: PrototypeSettings, generator: torch.Generator) -> Tensor:
    """For every seed bin a random voxel inside it, or anywhere in the class if it is empty."""
    bins = max(settings.bins, 10 * settings.k)
    own = _bin_of(values, bins)
    seeds = []
    for seed in histogram_seeds(values, settings.k, bins=settings.bins, gap=settings.gap):
        inside = (own == seed).nonzero()[:, 0]
        pool = inside if len(inside) else torch.arange(len(values), device=values.device)
        seeds.append(pool[int(torch.randint(len(pool), (1,), generator=generator))])
    return torch.stack(seeds)


def _far_apart(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows drawn as k-means++ does: each with a chance that grows with its squared distance to those before."""
    rows = [torch.randint(len(features), (1,), generator=generator)]
    nearest = torch.full((len(features),), float("inf"))
    while len(rows) < count:
        distance = (features - features[rows[-1]]).square().sum(1).cpu()
        nearest = torch.minimum(nearest, distance)
        # Where all features are the same, any row will do.
        chance = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        rows.append(torch.searchsorted(chance.double().cumsum(0) / chance.double().sum(), _uniform(generator)))
    return torch.cat(rows).clamp(max=len(features) - 1).to(features.device)


def _uniform(generator: torch.Generator) -> Tensor:
    return torch.rand(1, generator=generator, dtype=torch.float64)


def _coordinates(voxels: Tensor, size: tuple[int, ...], like: Tensor) -> Tensor:
    """Places in [-1, 1] on each axis, ``[n 3]``."""
    axes = torch.unravel_index(voxels, tuple(size))
    return torch.stack([axis.to(like) * (2 / max(side - 1, 1)) - 1 for axis, side in zip(axes, size, strict=True)], 1)
