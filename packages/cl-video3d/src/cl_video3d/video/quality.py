"""How much a decoded clip differs from its source: PSNR and SSIM of luma, VMAF where an ffmpeg has it."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_json
from jaxtyping import Float64, UInt8

# A frame that is the same bit for bit has no PSNR; with this floor it is 61.1 dB.
MSE_FLOOR = 0.05
VMAF_LEAST_HEIGHT = 192


def psnr_frames(
    reference: UInt8[np.ndarray, "t h w"], decoded: UInt8[np.ndarray, "t h w"]
) -> Float64[np.ndarray, " t"]:
    """``10 log10(255^2 / max(MSE, 0.05))`` of each frame, in dB, at most 61.1."""
    error = reference.astype(np.int32) - decoded
    mse = np.square(error).mean((1, 2), dtype=np.float64)
    return 10 * np.log10(255**2 / np.maximum(mse, MSE_FLOOR))


def ssim(reference: UInt8[np.ndarray, "t h w"], decoded: UInt8[np.ndarray, "t h w"]) -> float:
    """Mean structural similarity of luma (torchmetrics, 11 pixel Gaussian window), in [-1, 1]."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(np.ascontiguousarray(x)).float()[:, None] for x in (reference, decoded))
    return float(structural_similarity_index_measure(b, a, data_range=255.0))  # type: ignore[arg-type]


@functools.cache
def find_vmaf() -> str:
    """An ffmpeg that can compute VMAF: of the PATH, or of the wheel ``imageio-ffmpeg``.

    Raises:
        InputError: There is none; says what to install.
    """
    candidates = [shutil.which("ffmpeg")]
    try:
        import imageio_ffmpeg

        candidates.append(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        pass
    programs = [path for path in candidates if path]
    for path in programs:
        done = subprocess.run([path, "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
        if " libvmaf " in done.stdout:
            return path
    raise InputError(
        "VMAF cannot be computed here",
        where="--vmaf",
        why="no ffmpeg was found" if not programs else f"{', '.join(programs)}: built without libvmaf",
        remedy="install cl-video3d[vmaf], or put an ffmpeg with libvmaf on the PATH; PSNR and SSIM need none",
    )


def vmaf(
    reference: UInt8[np.ndarray, "t rows w"], decoded: UInt8[np.ndarray, "t rows w"], *, fps: float = 30.0
) -> float:
    """Mean VMAF of the default model, in [0, 100]; unreliable below 192 lines.

    Args:
        reference: Planar 4:2:0 as rows ``[Y; U; V]``.
        decoded: The same after the codec.
        fps: Frames a second.

    Raises:
        InputError: There is no ffmpeg with libvmaf, or it fails.
    """
    program = find_vmaf()
    height, width = reference.shape[1] * 2 // 3, reference.shape[2]
    with tempfile.TemporaryDirectory() as folder:
        inputs: list[str] = []
        for name, frames in (("decoded", decoded), ("reference", reference)):
            path = Path(folder) / f"{name}.yuv"
            np.ascontiguousarray(frames).tofile(path)
            inputs += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", f"{fps:g}"]
            inputs += ["-i", path.name]
        measure = "libvmaf=log_fmt=json:log_path=vmaf.json:n_threads=1"
        command = [program, "-hide_banner", "-loglevel", "error", *inputs, "-lavfi", measure, "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise InputError("VMAF failed", where=program, why=(done.stderr.strip() or "no message").splitlines()[-1])
        return float(read_json(Path(folder) / "vmaf.json")["pooled_metrics"]["vmaf"]["mean"])
