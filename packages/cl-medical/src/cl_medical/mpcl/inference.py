"""The trained segmenter: from an image to its segmentation; saved, and loaded again."""

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError
from contrastive_core.files import refuse_existing
from contrastive_core.training import seeded_generator
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, Integer
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from cl_medical.mpcl.features import cosine_maps
from cl_medical.mpcl.ihpg import Prototypes, PrototypeSettings, average, ihpg
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.volumes.caching import Volumes
from cl_medical.volumes.metrics import largest_component
from cl_medical.volumes.nifti import write_nifti
from cl_medical.volumes.patches import foreground_crop
from cl_medical.volumes.plan import DataPlan
from cl_medical.volumes.reading import read_image, volume_of
from cl_medical.volumes.sliding import slide

KIND = "mpcl-segmenter"


@dataclasses.dataclass
class Segmentation:
    """The segmentation of one image, on the image's own grid.

    Attributes:
        labels: Class of every voxel, ``uint8 [x y z]``.
        probabilities: ``float32 [c x y z]``, if asked for.
        prototype_labels: Class of the nearest prototype, ``uint8 [x y z]``, if asked for.
        winners: Number ``1 + c K + k`` of the nearest prototype, ``[x y z]``, if asked for.
        cosines: Best cosine of every class on the network's grid, ``float32 [c x y z]``, if asked for.
    """

    labels: Integer[np.ndarray, "x y z"]
    probabilities: Float[np.ndarray, "c x y z"] | None = None
    prototype_labels: Integer[np.ndarray, "x y z"] | None = None
    winners: Integer[np.ndarray, "x y z"] | None = None
    cosines: Tensor | None = None


class Segmenter:
    """A trained network with its prototypes.

    Args:
        network: The student.
        plan: How images are prepared and cut.
        prototypes: Prototypes of the labelled training cases.
        device: Where the network runs.
    """

    def __init__(self, network: VNet, plan: DataPlan, prototypes: Prototypes, device: str = "cpu") -> None:
        self.network, self.plan, self.prototypes = network.eval().to(device), plan, prototypes
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto") -> "Segmenter":
        """Read a segmenter, for instance that of a run.

        Args:
            folder: Where :meth:`save` wrote it.
            device: auto, cpu, or cuda.

        Raises:
            InputError: The folder holds no segmenter, its files are corrupt, or the device is not there.
        """
        place = pick_device(device)

        def build(state: dict[str, Any], about: dict[str, Any]) -> "Segmenter":
            kept = {name: state.pop(f"prototypes.{name}") for name in ("centers", "intensity", "share", "present")}
            plan, config = DataPlan.from_dict(about["data"]), NetworkConfig(**about["network"])
            network = VNet(config, len(plan.classes))
            network.load_state_dict(state)
            prototypes = Prototypes(**(kept | {"present": kept["present"].bool()}))
            if prototypes.centers.shape[::2] != (len(plan.classes), config.feature_width):
                raise ValueError(f"prototypes of the shape {tuple(prototypes.centers.shape)}")
            return cls(network, plan, prototypes, place)

        return load_model(folder, KIND, build, made_by="cl-medical mpcl train")

    def save(self, folder: Path | str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write the network and its prototypes.

        Args:
            folder: Made if missing.
            about: Further facts for ``model.json``.
        """
        state = dict(self.network.state_dict())
        state |= {f"prototypes.{name}": getattr(self.prototypes, name) for name in ("centers", "intensity", "share")}
        state["prototypes.present"] = self.prototypes.present.to(torch.uint8)
        network = dataclasses.asdict(self.network.config)
        save_weights(folder, state, {"kind": KIND, "network": network, "data": self.plan.to_dict(), **(about or {})})

    def segment(
        self, image: Any, *, probabilities: bool = False, prototypes: bool = False, batch: int = 1
    ) -> Segmentation:
        """Segment one image, however large: memory holds the image, its labels and one slab of predictions.

        Args:
            image: ``MetaTensor [1 x y z]`` as read, or an array or tensor ``[x y z]``.
            probabilities: Return the classes' probabilities too.
            prototypes: Return the maps of the prototype classifier too.
            batch: Windows the network sees at once.

        Raises:
            InputError: The image is no volume.
        """
        original = volume_of(image)
        prepared = self.plan.preprocessing.image(original)
        result = self.segment_prepared(
            prepared.as_tensor(), probabilities=probabilities, prototypes=prototypes, batch=batch
        )

        def restored(values: np.ndarray | None, *, smooth: bool = False) -> Any:
            if values is None:
                return None
            volume = torch.from_numpy(values if values.ndim == 4 else values[None])
            out = self.plan.preprocessing.restore(volume, prepared, original, smooth=smooth).numpy()
            return out if values.ndim == 4 else out[0]

        return Segmentation(
            restored(result.labels),
            restored(result.probabilities, smooth=True),
            restored(result.prototype_labels),
            restored(result.winners),
            result.cosines,
        )

    def segment_prepared(
        self, image: Float[Tensor, "1 x y z"], *, probabilities: bool = False, prototypes: bool = False, batch: int = 1
    ) -> Segmentation:
        """:meth:`segment` of an image that is already on the network's grid, with results on that grid."""
        size = tuple(image.shape[1:])
        classes, k, d = self.prototypes.centers.shape
        centers = self.prototypes.centers.reshape(-1, d).to(self.device)
        absent = ~self.prototypes.present.repeat_interleave(k)
        labels = torch.empty(size, dtype=torch.uint8)
        soft = torch.empty((classes, *size)) if probabilities else None
        numbers = torch.uint8 if classes * k < 256 else torch.int16
        winners = torch.empty(size, dtype=numbers) if prototypes else None
        cosines = torch.empty((classes, *size)) if prototypes else None

        def network(windows: Tensor) -> Tensor:
            output = self.network(windows.to(self.device))
            read = output.logits.softmax(1)
            if prototypes:
                read = torch.cat([read, cosine_maps(output.features, centers, windows.shape[2:])], 1)
            return read.cpu()

        with torch.inference_mode():
            for start, slab in slide(image, network, patch=self.plan.patch, stride=self.plan.stride, batch=batch):
                stop = start + slab.shape[1]
                labels[start:stop] = slab[:classes].argmax(0)
                if soft is not None:
                    soft[:, start:stop] = slab[:classes]
                if winners is not None and cosines is not None:
                    near = slab[classes:].masked_fill(absent[:, None, None, None], -1)
                    winners[start:stop] = near.argmax(0) + 1
                    cosines[:, start:stop] = near.unflatten(0, (classes, k)).amax(1)

        kept = labels.numpy()
        if self.plan.largest_component:
            kept = largest_component(kept, classes)
        near_map = None if winners is None else winners.numpy()
        return Segmentation(
            kept,
            None if soft is None else soft.numpy(),
            None if near_map is None else ((near_map.astype(np.int16) - 1) // k).astype(np.uint8),
            near_map,
            cosines,
        )


def segment_files(
    segmenter: Segmenter,
    paths: Mapping[str, Path],
    out: Path,
    *,
    extras: Sequence[str] = (),
    batch: int = 1,
    overwrite: bool = False,
) -> dict[Path, Exception]:
    """Segment volumes and write NIfTI in their own space: ``NAME.nii.gz``, and ``NAME`` with the ending of each extra.

    Args:
        segmenter: The model.
        paths: Files or series by name.
        out: Folder to write to.
        extras: ``_probabilities`` (16-bit integers scaled to [0, 1], one channel a class), ``_prototypes`` (class of
            the nearest prototype), ``_winners`` (its number).
        batch: Windows the network sees at once.
        overwrite: Replace existing files.

    Returns:
        What went wrong with each volume that could not be used; the others were written all the same.

    Raises:
        InputError: An output exists, would replace an input, or has the name of another; or the only volume failed.
    """
    endings = ["", *extras]
    _check_outputs(paths, out, endings, overwrite)
    failures: dict[Path, Exception] = {}
    for name, path in tracked(list(paths.items()), "segmenting", True):
        try:
            image = read_image(path)
            near = not {"_prototypes", "_winners"}.isdisjoint(extras)
            result = segmenter.segment(image, probabilities="_probabilities" in extras, prototypes=near, batch=batch)
            _write(result, image, out, name, endings)
        except (InputError, OSError, MemoryError, RuntimeError) as error:  # torch runs out of memory as RuntimeError
            if len(paths) == 1:
                raise
            failures[path] = error
            continue
        counts = np.bincount(result.labels.ravel(), minlength=len(segmenter.plan.classes)).tolist()
        shown = [f"{each} {count} voxels" for each, count in zip(segmenter.plan.classes, counts, strict=True)]
        print(f"{name}: {', '.join(shown[1:])}", file=sys.stderr)
    return failures


def _check_outputs(paths: Mapping[str, Path], out: Path, endings: Sequence[str], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", where=out, remedy="name a folder")
    inputs = {path.resolve() for path in paths.values()}
    seen: dict[Path, Path] = {}
    for name, path in paths.items():
        for ending in endings:
            target = out / f"{name}{ending}.nii.gz"
            if target in seen:
                raise InputError(
                    "two results have one name", where=path, why=f"{target.name} is also written for {seen[target]}"
                )
            seen[target] = path
            if target.resolve() in inputs:
                raise InputError("the output would replace an input", where=target, remedy="name another folder")
            refuse_existing(target, overwrite)


def _write(result: Segmentation, image: MetaTensor, out: Path, name: str, endings: Sequence[str]) -> None:
    maps: dict[str, Any] = {"": result.labels, "_prototypes": result.prototype_labels, "_winners": result.winners}
    for ending in endings:
        path = out / f"{name}{ending}.nii.gz"
        if ending in maps:
            write_nifti(path, maps[ending], image)
        elif result.probabilities is not None:
            whole = np.moveaxis(np.rint(result.probabilities * 65535).astype(np.uint16), 0, -1)
            write_nifti(path, whole, image, scale=1 / 65535)


def tracked(items: Sequence[Any], what: str, progress: bool) -> Iterable[Any]:
    """The items, with a progress bar on a terminal."""
    if not progress or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True))


@torch.no_grad()
def labelled_prototypes(
    network: VNet, cases: Volumes, plan: DataPlan, settings: PrototypeSettings, seed: int
) -> Prototypes:
    """Prototypes of labelled cases, averaged over them after ordering by intensity.

    Args:
        network: The network; put into eval mode.
        cases: Images and label maps on the network's grid; of each the patch around its structures is used.
        plan: Patch and classes.
        settings: K and the rest.
        seed: Seed of the draws.
    """
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for index in range(len(cases)):
        image, label = cases[index]
        if label is None:
            continue
        x, y = foreground_crop(image, label, plan.patch)
        x, y = x[None].to(device), y[None].to(device)
        draw = seeded_generator(seed, 5, index)
        part = ihpg(network(x).features.float(), x, y, len(plan.classes), settings, draw)
        parts.append(Prototypes(*(getattr(part, f.name).cpu() for f in dataclasses.fields(part))))
    return average(parts)
