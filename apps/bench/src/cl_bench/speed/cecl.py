"""Speed of CECL."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.echo import EchoSettings, measure
from cl_video3d.cecl.extraction import measure_videos
from cl_video3d.cecl.folder import read_echoes
from cl_video3d.cecl.model import EchoModel, ModelConfig
from cl_video3d.cecl.system import EchoSystem, ObjectiveSettings, Settings
from cl_video3d.video.encoding import EncodeSetting
from cl_video3d.video.manifest import Entry
from cl_video3d.video.reading import luma, probe
from cl_video3d.video.samples import write_samples

from cl_bench.measures import Speed, race

_STEPS = {
    "SimCLR": ObjectiveSettings(method="simclr"),
    "CECL kernel-views": ObjectiveSettings(target="kernel-views"),
    "CECL soft": ObjectiveSettings(target="soft"),
}


def speed(rounds: int) -> list[Speed]:
    """Echo extraction by one and two workers, memory of a long input, and a training step against SimCLR's.

    Args:
        rounds: Timed rounds of each contestant.
    """
    return [_per_frame(rounds), _scaling(rounds), _long_input(rounds), *_steps(rounds)]


def _per_frame(rounds: int) -> Speed:
    """Frames a second of one core, against the encoder alone without measuring."""
    clip = _texture(16, 96)
    settings = EchoSettings().settings()
    fps: list[float] = []

    def ours() -> None:
        start = time.perf_counter()
        for setting in settings:
            for _ in range(8):
                measure(clip, setting)
        fps.append(8 * 16 * len(settings) / (time.perf_counter() - start))

    def theirs() -> None:
        for setting in settings:
            for _ in range(8):
                _only_encode(clip, setting)

    result = race(
        "cecl: echo of 8 clips of 16 x 96 x 96, 4 CRFs",
        ours,
        theirs,
        peer="encoding alone",
        rounds=rounds,
        notes="",
        threads=1,
    )
    rate = statistics.median(fps)
    return dataclasses.replace(
        result,
        notes=f"{rate:.0f} frames a second and core, each encoded, decoded and compared; {rate / 4:.0f} source "
        "frames with all 4 CRFs",
    )


def _scaling(rounds: int) -> Speed:
    """The same videos with two workers and with one; what the workers need to start is left out by size."""
    with tempfile.TemporaryDirectory() as folder:
        entries = write_samples(Path(folder) / "samples", photographs=1, generated=4)
        settings, echo = ClipSettings(clips=12), EchoSettings(codec=("hevc",), preset=("medium",))

        def run(workers: int) -> Callable[[], None]:
            def task() -> None:
                with tempfile.TemporaryDirectory() as out:
                    measure_videos(entries, out, clips=settings, echo=echo, workers=workers, progress=False)

            return task

        return race(
            "cecl: extraction with two workers",
            run(2),
            run(1),
            peer="one worker",
            rounds=min(rounds, 2),
            notes=f"{len(entries)} videos of 12 clips, x265 medium, 4 CRFs, a thread a worker; start included",
            threads=1,
        )


def _long_input(rounds: int) -> Speed:
    """Eight clips out of two hours of 1080p, and out of ten seconds of it."""
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "short.mp4"
        long = Path(folder) / "long.mp4"
        _write_1080p(short, repeats=1)
        _write_1080p(long, repeats=720)
        frames = {path: probe(path).frames for path in (short, long)}

        def run(path: Path) -> Callable[[], None]:
            def task() -> None:
                with tempfile.TemporaryDirectory() as out:
                    measure_videos([Entry("v", path, "v")], out, clips=ClipSettings(size=224), progress=False)

            return task

        return race(
            "cecl: 8 clips of two hours of 1080p",
            run(long),
            run(short),
            peer="ten seconds of it",
            rounds=min(rounds, 3),
            notes=f"{frames[long]} against {frames[short]} frames; one 1080p frame has 3 MiB, the long film "
            f"{frames[long] * 3 / 1024:.0f} GiB",
            threads=1,
        )


def _steps(rounds: int) -> list[Speed]:
    with tempfile.TemporaryDirectory() as folder:
        entries = write_samples(Path(folder) / "samples", photographs=1, generated=4)
        measure_videos(entries, Path(folder) / "echo", clips=ClipSettings(clips=4), progress=False)
        echoes = read_echoes(Path(folder) / "echo").at()
        y = np.ascontiguousarray(luma(echoes.pixels(range(64))))
        numbers, clips = torch.arange(64), torch.from_numpy(y)

        def stepper(objective: ObjectiveSettings) -> Callable[[], None]:
            torch.manual_seed(0)
            system = EchoSystem(EchoModel(ModelConfig()), echoes, Settings(objective=objective))
            optimizer = torch.optim.AdamW(system.parameters(), lr=1e-3)

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                terms = system.losses(numbers, clips, torch.Generator().manual_seed(0))
                torch.autograd.backward(list(terms.values()))
                optimizer.step()

            return step

        return [
            race(
                f"cecl: training step, {name}",
                stepper(_STEPS[name]),
                stepper(_STEPS["SimCLR"]),
                peer="SimCLR",
                rounds=rounds,
                notes="64 clips, views of 8 x 48 x 48, views, forward, backward and AdamW",
            )
            for name in ("CECL soft", "CECL kernel-views")
        ]


def _only_encode(clip: np.ndarray, setting: EncodeSetting) -> None:
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt, context.thread_count = 96, 96, "yuv420p", 1
    context.time_base = Fraction(1, 30)
    context.options = {"preset": setting.preset, "crf": f"{setting.value:g}"}
    for frame in clip:
        context.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p"))
    context.encode(None)


def _texture(frames: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (side + 2 * frames, side + 2 * frames), dtype=np.uint8)
    y = np.stack([large[2 * t : 2 * t + side, t : t + side] for t in range(frames)])
    grey = np.full((frames, side // 2, side), 128, dtype=np.uint8)
    return np.concatenate([y, grey], axis=1)


def _write_1080p(path: Path, repeats: int) -> None:
    """Ten seconds of moving texture at 1920 x 1080, its packets repeated."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "once.mp4"
        rng = np.random.default_rng(0)
        wide = np.kron(rng.integers(0, 256, (90, 260), dtype=np.uint8), np.ones((12, 12), dtype=np.uint8))
        with av.open(str(first), "w") as container:
            stream = container.add_stream("libx264", rate=25, width=1920, height=1080)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            stream.options = {"preset": "ultrafast", "crf": "30", "bf": "0", "g": "50"}
            grey = np.full((540, 1920), 128, dtype=np.uint8)
            for index in range(250):
                shift = 4 * (index % 250)
                frame = np.concatenate([wide[:1080, shift : shift + 1920], grey])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="yuv420p")))
            container.mux(stream.encode(None))
        with av.open(str(first)) as source, av.open(str(path), "w") as target:
            template = source.streams.video[0]
            out = target.add_stream_from_template(template)
            packets = [packet for packet in source.demux(template) if packet.dts is not None]
            kept = [(int(packet.pts or 0), int(packet.dts or 0)) for packet in packets]
            length = round(10 / float(template.time_base or 1))
            for repeat in range(repeats):
                for packet, (pts, dts) in zip(packets, kept, strict=True):
                    packet.pts, packet.dts = pts + repeat * length, dts + repeat * length
                    packet.stream = out
                    target.mux(packet)
