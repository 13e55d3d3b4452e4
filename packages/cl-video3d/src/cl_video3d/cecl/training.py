"""Training a model on a folder of echoes."""

import numpy as np
import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, TrainSettings, batches, fit
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from cl_video3d.cecl.model import EchoModel, ModelConfig
from cl_video3d.cecl.store import EchoSet
from cl_video3d.cecl.system import EchoSystem, ObjectiveSettings, OptimSettings
from cl_video3d.cecl.views import ViewSettings
from cl_video3d.video.reading import luma

_IN_MEMORY = 2**30


class Clips(Dataset[list[Tensor]]):
    """Clips read from the shards as they are needed, for sets too large for memory."""

    def __init__(self, echoes: EchoSet) -> None:
        self.echoes = echoes

    def __len__(self) -> int:
        return len(self.echoes)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Number of the clip, and its luma."""
        frames = luma(self.echoes.pixels([index]))[0]
        return [torch.tensor(index), torch.from_numpy(np.ascontiguousarray(frames))]


def clip_shape(echoes: EchoSet) -> tuple[int, int, int]:
    """Frames, height and width of the clips.

    Raises:
        InputError: They are of several sizes.
    """
    shards = {clip.shard: row for row, clip in enumerate(echoes.clips)}
    first = luma(echoes.pixels(list(shards.values())))  # one clip a shard; refuses several sizes
    return (int(first.shape[1]), int(first.shape[2]), int(first.shape[3]))


def training_set(echoes: EchoSet) -> Dataset[list[Tensor]]:
    """Clips in memory where they fit, else from disk."""
    shape = clip_shape(echoes)
    if len(echoes) * int(np.prod(shape)) > _IN_MEMORY:
        return Clips(echoes)
    pixels = torch.from_numpy(np.ascontiguousarray(luma(echoes.pixels(range(len(echoes))))))
    return TensorDataset(torch.arange(len(echoes)), pixels)  # type: ignore[return-value]


def train_echo(
    echoes: EchoSet,
    *,
    run: RunFolder,
    model: ModelConfig = ModelConfig(),
    objective: ObjectiveSettings = ObjectiveSettings(),
    optim: OptimSettings = OptimSettings(),
    views: ViewSettings = ViewSettings(),
    batch_size: int = 64,
    train: TrainSettings = TrainSettings(epochs=15),
    workers: int = 0,
    data: Dataset[list[Tensor]] | None = None,
) -> EchoModel:
    """Train a video tower on clips and their echoes.

    Args:
        echoes: Training clips at the operating points of the echo, of :meth:`EchoSet.at`.
        run: Where logs and checkpoints go.
        model: Architecture.
        objective: What is learned.
        optim: Optimiser.
        views: Size of the views.
        batch_size: Clips of a batch, at most all.
        train: Length of the run, seed, hardware.
        workers: Loader processes.
        data: The clips' numbers and luma, if they are in memory already.

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        InputError: Fewer than two clips, clips of several sizes or smaller than a view, or residual maps are needed
            and were not kept.
    """
    if len(echoes) < 2 or batch_size < 2:
        raise InputError(
            "contrastive training needs at least two clips in a batch",
            where="--batch-size",
            why=f"got {batch_size}, and {len(echoes)} clips",
        )
    views.shape(clip_shape(echoes))
    if objective.uses_residuals:
        echoes.residuals([0])
    clips = training_set(echoes) if data is None else data
    size = min(batch_size, len(echoes))
    loader = batches(clips, size, seed=train.seed, workers=workers)
    torch.manual_seed(train.seed)
    network = EchoModel(model)
    total = train.total_steps(max(1, len(echoes) // size))
    system = EchoSystem(
        network, echoes, objective=objective, optim=optim, views=views, total_steps=total, seed=train.seed
    )
    fit(system, loader, run=run, settings=train)
    return network.cpu().eval()
