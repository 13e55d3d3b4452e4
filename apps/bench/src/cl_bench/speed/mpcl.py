"""Speed of MPCL."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from cl_medical.mpcl.ihpg import PrototypeSettings, histogram_seeds, ihpg, scale_intensity
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import fuse, prototype_contrast, prototype_cross_entropy, pseudo_labels, supervised_loss
from cl_medical.volumes.sliding import slide
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cl_bench.measures import Speed, race


def speed(rounds: int) -> list[Speed]:
    """A training step's prototype part against the published dense algorithm, and sliding-window prediction.

    Args:
        rounds: Timed rounds of each contestant.
    """
    if _free_gib() >= 32:
        return [*_steps(rounds, 96), _windows(rounds)]
    return [*_steps(rounds, 64), *_steps(rounds, 96, recompute=True), _windows(rounds)]


def _free_gib() -> float:
    """Memory that can be had; the dense algorithm needs more than 24 GB at 96³."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


def _windows(rounds: int) -> Speed:
    """Prediction over half-overlapping windows, against MONAI's inferer with the same windows."""
    from monai.inferers.utils import sliding_window_inference

    torch.manual_seed(0)
    network = VNet(NetworkConfig(width=8, downsamplings=3), 2).eval()
    volume = torch.rand(1, 96, 96, 96)
    patch, stride = (48, 48, 48), (24, 24, 24)

    def predict(x: Tensor) -> Tensor:
        return network(x).logits.softmax(1)

    def ours() -> Tensor:
        with torch.inference_mode():
            return torch.cat([slab for _, slab in slide(volume, predict, patch=patch, stride=stride, batch=4)], 1)

    def theirs() -> Tensor:
        with torch.inference_mode():
            return sliding_window_inference(volume[None], patch, 4, predict, overlap=0.5)[0]  # type: ignore[index,return-value]

    gap = float((ours() - theirs()).abs().max())
    start = time.perf_counter()
    ours()
    rate = volume.numel() / (time.perf_counter() - start)
    notes = f"96³ voxels in 27 windows of 48³, width 8; {rate:,.0f} voxels/s; results differ by at most {gap:.0e}"
    return race("mpcl: sliding windows", ours, theirs, peer="MONAI's inferer", rounds=rounds, notes=notes)


def _steps(rounds: int, side: int, width: int = 16, *, recompute: bool = False) -> list[Speed]:
    """The terms of one step on the same labelled and unlabelled maps: without and with the network."""
    generator = torch.Generator().manual_seed(0)
    size = (side, side, side)
    config = NetworkConfig(width=width)
    image = torch.rand(1, 1, *size, generator=generator)
    other = torch.rand(1, 1, *size, generator=generator)
    label = torch.zeros(1, *size, dtype=torch.long)
    label[:, side // 4 : side // 2, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    torch.manual_seed(0)
    student, teacher = VNet(config, 2), VNet(config, 2)

    def step(terms: Callable[..., Tensor]) -> Callable[[], None]:
        def task() -> None:
            student.zero_grad()
            output = student(image)
            with torch.no_grad():
                taught = teacher(other)
            loss = supervised_loss(output.heads, label) + terms(output.features, taught.features, taught.logits)
            loss.backward()

        return task

    low = side // 8
    maps = [torch.rand(1, config.feature_width, low, low, low, generator=generator) for _ in range(2)]
    logits = torch.randn(1, 2, *size, generator=generator) * 4

    def alone(terms: Callable[..., Tensor]) -> Callable[[], None]:
        def task() -> None:
            terms(maps[0].clone().requires_grad_(), maps[1], logits).backward()

        return task

    def ours(x6: Tensor, taught: Tensor, scores: Tensor) -> Tensor:
        return _our_terms(x6, taught, scores, image, other, label)

    def theirs(x6: Tensor, taught: Tensor, scores: Tensor) -> Tensor:
        return _dense_terms(x6, taught, scores, image, other, label, recompute=recompute)

    notes = (
        f"{side}³ patches, 1 + 1, C=2, K=3, d={config.feature_width}, forward and backward; ours clusters 20,000 "
        "voxels a class"
    )
    peer = "the published dense algorithm" + (", iterations recomputed in the backward pass" if recompute else "")
    return [
        race(f"mpcl: prototype terms, {side}³", alone(ours), alone(theirs), peer=peer, rounds=rounds, notes=notes),
        race(f"mpcl: training step, {side}³", step(ours), step(theirs), peer=peer, rounds=rounds, notes=notes),
    ]


def _our_terms(x6: Tensor, taught: Tensor, scores: Tensor, image: Tensor, other: Tensor, label: Tensor) -> Tensor:
    draw, settings = torch.Generator().manual_seed(0), PrototypeSettings()
    a = ihpg(x6, image, label, 2, settings, draw)
    with torch.no_grad():
        pseudo, trust = pseudo_labels(scores)
        b = ihpg(taught, other, pseudo, 2, settings, draw, reliability=trust)
    fused, present = fuse(a, b, 0.5)
    return (
        prototype_cross_entropy(x6, fused, present, label)
        + 0.5 * prototype_cross_entropy(taught, fused, present, pseudo, weight=trust)
        + 0.5 * prototype_contrast(a, b)
    )


def _dense_terms(
    x6: Tensor, taught: Tensor, scores: Tensor, image: Tensor, other: Tensor, label: Tensor, *, recompute: bool = False
) -> Tensor:
    """The algorithm as published: all maps at full resolution, ``[n k d]`` differences in every iteration.

    With ``recompute`` the iterations do not keep these differences for the backward pass (gradient checkpointing): a
    third more time at most, and the only way to fit 96³ into 24 GB.
    """
    size = label.shape[1:]
    full = F.interpolate(x6, size=size, mode="trilinear", align_corners=False)
    a = _dense_prototypes(full, image, label, recompute=recompute)
    with torch.no_grad():
        full_other = F.interpolate(taught, size=size, mode="trilinear", align_corners=False)
        probability = scores.softmax(1)
        pseudo = probability.argmax(1)
        entropy = -(probability * (probability + 1e-16).log()).sum(1)
        trust = 1 - entropy / entropy.sum()
        b = _dense_prototypes(full_other, other, pseudo)
    fused = (a + 0.5 * b) / 1.5

    def logits(features: Tensor) -> Tensor:
        columns = [
            torch.stack([F.cosine_similarity(features, p[None, :, None, None, None], dim=1) for p in rows]).amax(0)
            for rows in fused
        ]
        return torch.stack(columns, 1)

    z = F.normalize(torch.cat([a.flatten(0, 1), b.flatten(0, 1)]), dim=1)
    group = torch.arange(2).repeat_interleave(3).repeat(2)
    s = (z @ z.T / 0.1).exp()
    same = (group[:, None] == group) & ~torch.eye(12, dtype=torch.bool)
    contrast = -((s * same).sum(1) / s.sum(1)).log().mean()
    unlabelled = (trust * F.cross_entropy(logits(full_other), pseudo, reduction="none")).mean()
    return F.cross_entropy(logits(full), label) + 0.5 * unlabelled + 0.5 * contrast


def _dense_prototypes(features: Tensor, image: Tensor, label: Tensor, *, recompute: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    flat, values = features[0].flatten(1).T, scale_intensity(image).flatten()
    axes = [torch.linspace(-1, 1, side) for side in label.shape[1:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    found = []
    for number in range(2):
        inside = (label.flatten() == number).nonzero()[:, 0]
        x, where, own = flat[inside], places[inside], values[inside]
        seeds = []
        for bin_index in histogram_seeds(own, 3).tolist():
            pool = ((own * 100).long().clamp(0, 99) == bin_index).nonzero()[:, 0]
            pool = pool if len(pool) else torch.arange(len(own))
            seeds.append(pool[torch.randint(len(pool), (1,), generator=generator)])
        centers, spots = x[torch.cat(seeds)], where[torch.cat(seeds)]
        for _ in range(10):
            if recompute:
                centers, spots = checkpoint(_dense_iteration, x, where, centers, spots, use_reentrant=False)
            else:
                centers, spots = _dense_iteration(x, where, centers, spots)
        found.append(centers)
    return torch.stack(found)


def _dense_iteration(x: Tensor, where: Tensor, centers: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
    distance = (x[:, None] - centers).norm(dim=2) + (where[:, None] - spots).norm(dim=2) / 100
    weight = torch.exp(-(distance + 1e-12).sqrt())
    weight = weight / (weight.sum(1, keepdim=True) + 1e-10)
    mass = weight.sum(0)[:, None]
    return (weight[:, :, None] * x[:, None]).sum(0) / mass, (weight[:, :, None] * where[:, None]).sum(0) / mass
