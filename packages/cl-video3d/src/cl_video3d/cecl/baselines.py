"""Features without an echo, to compare with: spatial and temporal information, one trial encode, frozen networks."""

import numpy as np
import torch
from contrastive_core.backbones import Backbone, image_backbone
from jaxtyping import Float, UInt8
from scipy.ndimage import sobel

from cl_video3d.cecl.curves import log_rates
from cl_video3d.cecl.data import EchoSet
from cl_video3d.video.planes import to_rgb
from cl_video3d.video.reading import luma

_FRAMES = 3


def spatial_information(frames: UInt8[np.ndarray, "t h w"]) -> Float[np.ndarray, " t"]:
    """Standard deviation of the Sobel gradient of each frame (ITU-T P.910, 7.7), without the border."""
    # Frame by frame: on the whole clip the operator would smooth over time too.
    gradients = [np.hypot(sobel(y, axis=0), sobel(y, axis=1))[1:-1, 1:-1] for y in frames.astype(np.float64)]
    return np.array([gradient.std() for gradient in gradients])


def temporal_information(frames: UInt8[np.ndarray, "t h w"]) -> Float[np.ndarray, " t1"]:
    """Standard deviation of the difference of neighbouring frames (ITU-T P.910, 7.8)."""
    return np.diff(frames.astype(np.float64), axis=0).std((1, 2))


def siti_features(clips: UInt8[np.ndarray, "n t h w"]) -> Float[np.ndarray, "n 6"]:
    """Logarithms of the largest and mean SI and TI, and of mean and spread of luma.

    Args:
        clips: Luma.
    """
    rows = []
    for clip in clips:
        si, ti = spatial_information(clip), temporal_information(clip)
        rows.append([si.max(), si.mean(), ti.max(), ti.mean(), clip.mean(), clip.std()])
    return np.log(np.array(rows) + 0.1)


def trial_features(echoes: EchoSet) -> Float[np.ndarray, "n 1"]:
    """``log2 bpp`` at the middle operating point: one trial encode of the clip itself, which the others do without.

    Args:
        echoes: Clips at the operating points of one codec.
    """
    return log_rates(echoes.measured["bpp"][:, echoes.middle : echoes.middle + 1])


@torch.inference_mode()
def backbone_features(
    backbone: Backbone, clips: UInt8[np.ndarray, "n t rows w"], *, side: int = 224, batch: int = 16
) -> Float[np.ndarray, "n d"]:
    """Mean features of three frames of each clip, enlarged to the network's input.

    Args:
        backbone: An image network.
        clips: Planar 4:2:0.
        side: Side of the input.
        batch: Clips at a time.
    """
    network = backbone.network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    out = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        places = np.linspace(0, part.shape[1] - 1, min(_FRAMES, part.shape[1])).round().astype(int)
        images = np.stack([to_rgb(clip[place]) for clip in part for place in places])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
        features = network((x - mean) / std)
        out.append(features.reshape(len(part), len(places), -1).mean(1).numpy())
    return np.concatenate(out)


def baseline_features(name: str, echoes: EchoSet, *, weights: str | None = None) -> Float[np.ndarray, "n d"]:
    """Features of all clips by the name of a baseline.

    Args:
        name: ``siti``, ``trial``, or an image network of :func:`contrastive_core.backbones.image_backbone`.
        echoes: The clips at the operating points of one codec.
        weights: Weights of an image network: a file, or ``hub``; random ones without, with a note.

    Raises:
        InputError: There is no such baseline, or its weights cannot be had.
    """
    if name == "trial":
        return trial_features(echoes)
    if name == "siti":
        return np.concatenate([siti_features(luma(block)) for block in echoes.blocks()])
    backbone = image_backbone(name, weights=weights, note_random=True)
    return np.concatenate([backbone_features(backbone, block) for block in echoes.blocks()])
