"""Training a video tower on echoes."""

import torch
from contrastive_core.errors import InputError
from contrastive_core.training import RunFolder, batches, fit

from cl_video3d.cecl.data import EchoSet, training_set
from cl_video3d.cecl.inference import EchoEncoder
from cl_video3d.cecl.model import EchoModel
from cl_video3d.cecl.system import EchoSystem, Settings
from cl_video3d.video.encoding import Codec


def train_echo(
    echoes: EchoSet,
    settings: Settings = Settings(),
    run: RunFolder | None = None,
    *,
    split: str | None = None,
    codec: Codec | None = None,
    workers: int = 0,
) -> EchoEncoder:
    """Train a video tower on clips and their echoes, or a baseline on the clips alone.

    Args:
        echoes: Measured clips.
        settings: What is learned, and how.
        run: Where logs and checkpoints go; nothing is written without.
        split: Train on this split of the list; on ``train`` where the list has one, else on all clips.
        codec: Codec whose echo is learned; the first measured one if absent.
        workers: Loader processes, for clips that are read from disk.

    Returns:
        The encoder, on the CPU.

    Raises:
        InputError: Fewer than two clips, clips of several sizes or smaller than a view, or residual maps are needed
            and were not kept.
    """
    part, name = echoes.training_part(split)
    known = part.at(codec)
    if len(known) < 2:
        raise InputError("contrastive training needs at least two clips", where=echoes.folder, why=f"got {len(known)}")
    view = settings.views.shape(known.clip_shape())
    if settings.objective.needs_residuals:
        if len(known.settings) != len(echoes.settings):
            raise InputError(
                "residual maps are learned from one codec and resolution",
                where=echoes.folder,
                why=f"{len(echoes.settings)} operating points were measured",
                remedy="measure one codec without --shares for --echo residual",
            )
        known.residuals([0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        model = EchoModel(settings.model)
        system = EchoSystem(model, known, settings)
    loader = batches(training_set(known), settings.batch_size, seed=settings.training.seed, workers=workers)
    fit(system, loader, settings=settings.training, run=run)
    return EchoEncoder(model, view=view, cut=echoes.cut, codec=known.settings[0].codec, split=name)
