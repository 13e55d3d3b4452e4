"""Small videos and clips that the tests share."""

from fractions import Fraction

import av
import numpy as np
import pytest
from cl_video3d.cecl import ClipSettings, EchoSettings, measure_videos
from cl_video3d.video.manifest import read_manifest
from scipy.ndimage import gaussian_filter


def texture(side, *, blur=1.2, seed=0):
    """A photograph-like picture: smoothed noise over the whole range of grey."""
    rough = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), blur, mode="wrap")
    return np.interp(rough, [rough.min(), rough.max()], [0, 255])


def moving(frames=16, side=96, *, step=(2, 1), picture=None):
    """Planar 4:2:0 clip of a window that moves over a picture."""
    whole = texture(side + 2 * frames + 8) if picture is None else picture
    y = np.stack([whole[step[1] * t : step[1] * t + side, step[0] * t : step[0] * t + side] for t in range(frames)])
    return planar(y)


def planar(y):
    grey = np.full((len(y), y.shape[1] // 2, y.shape[2]), 128, dtype=np.uint8)
    return np.concatenate([np.clip(np.rint(y), 0, 255).astype(np.uint8), grey], axis=1)


def write(path, y, *, pix_fmt="yuv420p", codec="libx264", times=None, options=None, color_trc=None):
    """Write luma ``[t h w]`` as a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = y.shape[1], y.shape[2], pix_fmt
        stream.codec_context.time_base = Fraction(1, 300)
        stream.codec_context.thread_count = 1
        if color_trc is not None:
            stream.codec_context.color_trc = color_trc
        stream.options = options or {"crf": "10", "preset": "ultrafast", "g": "8"}
        for index, frame in enumerate(y):
            picture = _picture(frame, pix_fmt)
            picture.pts = 10 * index if times is None else times[index]
            picture.time_base = Fraction(1, 300)
            if color_trc is not None:
                picture.color_trc = color_trc
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def _picture(frame, pix_fmt):
    """Limited-range luma as a grey picture in some format."""
    if pix_fmt == "yuv444p":  # odd sizes can only be had like this
        return av.VideoFrame.from_ndarray(np.stack([frame, *np.full((2, *frame.shape), 128, np.uint8)]), format=pix_fmt)
    picture = av.VideoFrame.from_ndarray(planar(frame[None].astype(float))[0], format="yuv420p")
    if pix_fmt == "yuv420p":
        return picture
    full = {"src_color_range": "MPEG", "dst_color_range": "JPEG"} if pix_fmt == "yuvj420p" else {}
    return picture.reformat(format=pix_fmt, **full)


def film(count=40, height=128, width=160, seed=0, blur=1.5):
    """Luma of a video that pans over a texture, limited range."""
    whole = 16 + texture(max(height, width) + count + 4, blur=blur, seed=seed) * 219 / 255
    frames = [whole[t : t + height, t : t + width] for t in range(count)]
    return np.clip(np.rint(np.stack(frames)), 16, 235).astype(np.uint8)


def film_set(folder):
    """Five good videos of graded complexity, each a group, listed in a manifest with splits."""
    lines = ["video_id,path,group,split"]
    for index, (blur, group, split) in enumerate(
        [(8.0, "a", "train"), (3.0, "b", "train"), (1.5, "c", "test"), (0.7, "d", "train"), (0.4, "e", "test")]
    ):
        write(folder / f"v{index}.mp4", film(blur=blur, seed=index))
        lines.append(f"v{index},v{index}.mp4,{group},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiny_cecl(folder):
    """A folder of echoes that trains in a second: 20 clips of 8 x 64 x 64, with the maps of what was lost."""
    measure_videos(
        read_manifest(film_set(folder / "videos")),
        folder / "echo",
        clips=ClipSettings(frames=8, size=64, clips=4),
        echo=EchoSettings(residuals=True),
        progress=False,
    )
    return folder / "echo"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    return film_set(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def echo_folder(tmp_path_factory):
    return tiny_cecl(tmp_path_factory.mktemp("tiny"))
