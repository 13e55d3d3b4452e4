"""Training a segmenter."""

import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import require
from contrastive_core.training import RunFolder, fit
from torch.utils.data import DataLoader, TensorDataset

from cl_medical.mpcl.data import TrainingData, patches
from cl_medical.mpcl.evaluation import mean_dice
from cl_medical.mpcl.inference import Segmenter, labelled_prototypes
from cl_medical.mpcl.model import VNet
from cl_medical.mpcl.plan import network_for
from cl_medical.mpcl.system import SegmentationSystem, Settings


def train_segmenter(data: TrainingData, settings: Settings = Settings(), run: RunFolder | None = None) -> Segmenter:
    """Train MPCL or a baseline.

    Args:
        data: Volumes, read by :func:`cl_medical.mpcl.data.read_training` or made by
            :func:`cl_medical.mpcl.data.in_memory`.
        settings: Method, network, optimiser, length.
        run: Where logs and checkpoints go; nothing is written without one.

    Returns:
        The segmenter, with prototypes of the labelled volumes.

    Raises:
        InputError: The method needs unlabelled volumes and there are none, or the settings do not fit the machine.
    """

    def validate(network: VNet, index: int) -> float:
        image, label = data.validation[index]
        return 0.0 if label is None else mean_dice(network, image, label, data.plan)

    training, config = settings.training, network_for(settings, data.plan)
    device = "cpu" if training.accelerator == "cpu" else pick_device("auto")
    last = min(data.plan.patch) // config.divisor
    # Torch's bf16 convolutions read memory that nobody wrote in backward, on processors, where a side is 2 or 3.
    require(
        device != "cpu" or "bf16" not in training.precision or last >= 4,
        "--precision",
        f"{training.precision} with sides of {last} voxels at the network's last scale, on a processor",
        "32-true, a larger --patch, or fewer --network.downsamplings",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = VNet(config, len(data.plan.classes))
    validation = len(data.validation)
    system = SegmentationSystem(network, settings, validate if validation else None)
    fit(
        system,
        patches(data, settings),
        settings=training,
        run=run,
        validation_data=DataLoader(TensorDataset(torch.arange(validation))) if validation else None,
        keep="best" if validation else "last",
    )
    student = system.network.to(device)
    prototypes = labelled_prototypes(student, data.labelled, data.plan, system.prototypes, training.seed)
    return Segmenter(student, data.plan, prototypes, device)
