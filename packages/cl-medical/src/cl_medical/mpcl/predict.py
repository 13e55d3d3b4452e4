"""From an image to its segmentation, and the prototypes of a trained network."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, seeded_generator
from jaxtyping import Float, Integer
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from cl_medical.mpcl.data import DataPlan, Volumes, foreground_crop
from cl_medical.mpcl.features import cosine_maps
from cl_medical.mpcl.ihpg import Prototypes, PrototypeSettings, average, ihpg
from cl_medical.mpcl.model import NetworkConfig, VNet, load_network
from cl_medical.volumes.metrics import largest_component
from cl_medical.volumes.sliding import slide

KIND = "mpcl-segmenter"
CE_SCALE = 10.0
"""Factor on the cosines when the prototype classifier is judged by its cross-entropy."""


@dataclasses.dataclass
class Segmentation:
    """What was found in one image, on the image's own grid.

    Attributes:
        labels: Class of every voxel, ``uint8 [x y z]``.
        probabilities: ``float32 [c x y z]``, if asked for.
        prototype_labels: Class of the nearest prototype, ``uint8 [x y z]``, if asked for.
        winners: Number ``1 + c K + k`` of the nearest prototype, ``uint8 [x y z]``, if asked for.
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
    def load(cls, folder: Path | str, device: str = "cpu") -> "Segmenter":
        """Read the network of a run.

        Raises:
            InputError: The folder holds no run of this method, or its files are corrupt.
        """
        state, about = RunFolder.open(folder).load_model()
        if about.get("kind") != KIND:
            raise InputError(
                "the folder holds no segmenter",
                where=folder,
                why=f"it holds a {about.get('kind', 'model of unknown kind')}",
                remedy="name a folder written by `cl-medical mpcl train`",
            )
        kept = {name: state.pop(name) for name in list(state) if name.startswith("prototypes.")}
        plan = DataPlan.from_dict(about["data"])
        network = load_network(state, NetworkConfig.from_dict(about["network"]), len(plan.classes))
        prototypes = Prototypes(
            kept["prototypes.centers"],
            kept["prototypes.intensity"],
            kept["prototypes.share"],
            kept["prototypes.present"].bool(),
        )
        return cls(network, plan, prototypes, pick_device(device))

    def save(self, run: RunFolder, about: dict[str, Any]) -> None:
        """Write the network and its prototypes as the run's model."""
        state = dict(self.network.state_dict())
        state |= {f"prototypes.{name}": getattr(self.prototypes, name) for name in ("centers", "intensity", "share")}
        state["prototypes.present"] = self.prototypes.present.to(torch.uint8)
        description = {
            "kind": KIND,
            "network": dataclasses.asdict(self.network.config),
            "data": self.plan.to_dict(),
            **about,
        }
        run.save_model(state, description)

    def segment(
        self, image: MetaTensor, *, probabilities: bool = False, prototypes: bool = False, batch: int = 1
    ) -> Segmentation:
        """Segment one image, however large: memory holds the image, its labels and one slab of predictions.

        Args:
            image: ``[1 x y z]`` as read.
            probabilities: Return the classes' probabilities too.
            prototypes: Return the maps of the prototype classifier too.
            batch: Windows the network sees at once.
        """
        prepared = self.plan.preprocessing.image(image)
        found = self.segment_prepared(
            prepared.as_tensor(), probabilities=probabilities, prototypes=prototypes, batch=batch
        )

        def restored(values: np.ndarray, *, smooth: bool = False) -> np.ndarray:
            volume = torch.from_numpy(values if values.ndim == 4 else values[None])
            out = self.plan.preprocessing.restore(volume, prepared, image, smooth=smooth).numpy()
            return out if values.ndim == 4 else out[0]

        return Segmentation(
            restored(found.labels),
            None if found.probabilities is None else restored(found.probabilities, smooth=True),
            None if found.prototype_labels is None else restored(found.prototype_labels),
            None if found.winners is None else restored(found.winners),
            found.cosines,
        )

    def segment_prepared(
        self, image: Float[Tensor, "1 x y z"], *, probabilities: bool = False, prototypes: bool = False, batch: int = 1
    ) -> Segmentation:
        """:meth:`segment` of an image that is already on the network's grid, with results on that grid."""
        training = self.network.training
        self.network.eval()
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

        self.network.train(training)
        found = labels.numpy()
        if self.plan.largest_component:
            found = largest_component(found, classes)
        near_map = None if winners is None else winners.numpy()
        return Segmentation(
            found,
            None if soft is None else soft.numpy(),
            None if near_map is None else ((near_map.astype(np.int16) - 1) // k).astype(np.uint8),
            near_map,
            cosines,
        )


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
        assert label is not None
        x, y = foreground_crop(image, label, plan.patch)
        x, y = x[None].to(device), y[None].to(device)
        draw = seeded_generator(seed, 5, index)
        found = ihpg(network(x).features.float(), x, y, len(plan.classes), settings, draw)
        parts.append(Prototypes(*(getattr(found, f.name).cpu() for f in dataclasses.fields(found))))
    return average(parts)


def pick_device(name: str) -> str:
    """``auto`` is the GPU if there is one.

    Raises:
        InputError: The device is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError("the device is not there", where="--device", why=str(error).splitlines()[0]) from error
    return name
