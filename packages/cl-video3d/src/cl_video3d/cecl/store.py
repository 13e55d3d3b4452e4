"""Echoes on disk: one table of clips, one of measurements, and the clips' pixels in shards."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, write_json
from jaxtyping import Float, Float32, Int, UInt8

from cl_video3d.cecl.echo import EchoKind, EchoSettings, echo_vectors
from cl_video3d.video.encoding import Codec, EncodeSetting
from cl_video3d.video.manifest import Entry, check_disjoint

if TYPE_CHECKING:
    from cl_video3d.cecl.cache import EchoCache
    from cl_video3d.cecl.clips import ClipSettings

CACHE = "cache.sqlite"
_MEASURED = ("bits", "bpp", "psnr", "psnr_std", "bits_i", "bits_p", "bits_b", "n_i", "n_p", "n_b", "ssim", "vmaf")


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """Where a clip comes from and where its pixels are.

    Attributes:
        clip_id: ``VIDEO@SHORT_SIDE#NUMBER``.
        video_id: Its video.
        group: Title or source of the video.
        split: Part of the list the video is in.
        path: The file.
        short_side: Short side the frames were resized to; 0 for native pixels.
        number: Number among the clips of the video and short side.
        start: First frame.
        x: Left edge.
        y: Top edge.
        fps: Frames a second of the clip.
        video_fps: Frames a second of the video.
        width: Width of the video.
        height: Height of the video.
        source_bpp: Bits a pixel of the file it was cut from.
        digest: SHA-256 of the pixels.
        shard: File of ``pixels/`` that holds them.
        place: Row in the shard.
        residual_shard: File of the residual maps; empty without.
        keys: Keys of its measurements, one a setting.
    """

    clip_id: str
    video_id: str
    group: str
    split: str
    path: str
    short_side: int
    number: int
    start: int
    x: int
    y: int
    fps: float
    video_fps: float
    width: int
    height: int
    source_bpp: float
    digest: str
    shard: str
    place: int
    residual_shard: str
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A video, or some of its clips, that were left out.

    Attributes:
        video_id: The video.
        path: Its file.
        what: What went wrong.
        why: The reason.
    """

    video_id: str
    path: str
    what: str
    why: str

    @classmethod
    def of(cls, entry: Entry, error: InputError) -> "Skipped":
        """From an error on a video."""
        return cls(entry.video_id, str(entry.path), error.what, error.why or "")


@dataclasses.dataclass(frozen=True)
class EchoSet:
    """Clips with their echoes.

    Attributes:
        folder: Where they are.
        clips: The clips.
        settings: Operating points, the columns of the measurements.
        measured: Measurements by name, ``[n c]``, NaN where not measured.
    """

    folder: Path
    clips: tuple[ClipRecord, ...]
    settings: tuple[EncodeSetting, ...]
    measured: dict[str, Float[np.ndarray, "n c"]]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def ids(self) -> list[str]:
        """Ids of the clips."""
        return [clip.clip_id for clip in self.clips]

    @property
    def groups(self) -> list[str]:
        """Group of every clip."""
        return [clip.group for clip in self.clips]

    @property
    def videos(self) -> list[str]:
        """Video of every clip."""
        return [clip.video_id for clip in self.clips]

    def take(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> "EchoSet":
        """Some of the clips."""
        index = np.asarray(rows, dtype=np.int64)
        measured = {name: values[index] for name, values in self.measured.items()}
        return dataclasses.replace(self, clips=tuple(self.clips[i] for i in index.tolist()), measured=measured)

    def part(self, split: str) -> "EchoSet":
        """The clips of one split of the list.

        Raises:
            InputError: There are none.
        """
        rows = [index for index, clip in enumerate(self.clips) if clip.split == split]
        if not rows:
            there = sorted({clip.split for clip in self.clips})
            raise InputError(
                "there are no clips of that split",
                where="--split",
                why=f"got {split}",
                remedy=f"one of {', '.join(name or '(none)' for name in there)}",
            )
        return self.take(rows)

    def at(self, codec: Codec | None = None, share: float = 1.0) -> "EchoSet":
        """Measurements at constant quality of one codec and resolution, by rising CRF.

        Args:
            codec: The codec; the first measured one by default.
            share: Resolution, as a share of the clip's.

        Raises:
            InputError: Fewer than two such measurements.
        """
        wanted = codec or self.settings[0].codec
        columns = [
            index
            for index, each in enumerate(self.settings)
            if each.codec == wanted and each.share == share and each.control == "crf"
        ]
        columns.sort(key=lambda index: self.settings[index].value)
        if not columns:
            there = sorted({each.codec for each in self.settings if each.control == "crf"})
            raise InputError(
                "there are no measurements of that codec at constant quality",
                where="--codec",
                why=f"got {wanted}; measured: {', '.join(there) or 'rates only'}",
                remedy="measure with --crf, or name a measured codec",
            )
        return self.columns(columns)

    def columns(self, columns: Sequence[int]) -> "EchoSet":
        """Some of the operating points."""
        index = list(columns)
        measured = {name: values[:, index] for name, values in self.measured.items()}
        return dataclasses.replace(self, settings=tuple(self.settings[i] for i in index), measured=measured)

    def vectors(self, kind: EchoKind = "stats") -> Float[np.ndarray, "n e"]:
        """Echo vectors over all operating points held, not standardised."""
        m = self.measured
        frames = None
        if kind == "extended":
            with np.errstate(invalid="ignore", divide="ignore"):
                area = m["bits"] / m["bpp"] / (m["n_i"] + m["n_p"] + m["n_b"])
                means = [m[f"bits_{k}"] / np.maximum(m[f"n_{k}"], 1) / area for k in "ipb"]
            frames = np.nan_to_num(np.stack(means, axis=2))
        return echo_vectors(m["bpp"], m["psnr"], kind=kind, psnr_std=m.get("psnr_std"), frame_bpp=frames)

    def pixels(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m t rows w"]:
        """Frames of some clips, planar 4:2:0, read from disk.

        Raises:
            InputError: A shard is missing, or the clips are of several sizes.
        """
        return self._gather(rows, "shard")

    def residuals(self, rows: Sequence[int] | Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m c t h w"]:
        """Maps of what was lost at every operating point that was measured.

        Raises:
            InputError: They were not kept.
        """
        if any(not self.clips[int(row)].residual_shard for row in rows):
            raise InputError("residual maps were not kept", where=self.folder, remedy="measure again with --residuals")
        return self._gather(rows, "residual_shard").astype(np.float32)

    def _gather(self, rows: Any, name: str) -> np.ndarray:
        parts, opened = [], dict[str, np.ndarray]()
        for row in np.asarray(rows).tolist():
            clip = self.clips[row]
            shard = getattr(clip, name)
            if shard not in opened:
                path = self.folder / "pixels" / shard
                try:
                    opened[shard] = np.load(path, mmap_mode="r", allow_pickle=False)
                except (OSError, ValueError) as error:
                    raise InputError(
                        "the pixels of the clips cannot be read",
                        where=path,
                        why=str(error),
                        remedy="run encode-echo again with the same output",
                    ) from error
            parts.append(np.array(opened[shard][clip.place]))
        if len({part.shape for part in parts}) > 1:
            shapes = sorted({part.shape for part in parts})
            raise InputError(
                "the clips are of several sizes",
                where=self.folder,
                why=f"{shapes[0]} and {shapes[1]}",
                remedy="measure clips of one --size",
            )
        return np.stack(parts)


def write_store(
    folder: Path,
    records: Sequence[ClipRecord],
    echo: EchoSettings,
    clips: "ClipSettings",
    skipped: Sequence[Skipped],
    cache: "EchoCache",
) -> None:
    """Write ``clips.parquet``, ``echo.parquet``, ``skipped.csv`` and ``settings.json``; remove unused shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = echo.settings()
    rows = cache.get([key for record in records for key in record.keys])
    columns: dict[str, list[Any]] = {"clip_id": [], "key": []}
    columns |= {field.name: [] for field in dataclasses.fields(EncodeSetting)} | {name: [] for name in _MEASURED}
    for record in records:
        for key, setting in zip(record.keys, settings, strict=True):
            values = {"clip_id": record.clip_id, "key": key, **dataclasses.asdict(setting), **rows[key][0]}
            for name, column in columns.items():
                column.append(values[name])
    floats = {name: pa.array(columns[name], type=pa.float32()) for name in ("ssim", "vmaf")}
    fields = [field.name for field in dataclasses.fields(ClipRecord) if field.name != "keys"]
    table = {name: [getattr(record, name) for record in records] for name in fields}
    for name, content in (("echo", pa.table({**columns, **floats})), ("clips", pa.table(table))):
        with atomic_write(folder / f"{name}.parquet") as temporary:
            pq.write_table(content, temporary)
    with atomic_write(folder / "skipped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Skipped)])
        writer.writerows(dataclasses.astuple(each) for each in skipped)
    write_json(folder / "settings.json", {"echo": dataclasses.asdict(echo), "clips": dataclasses.asdict(clips)})
    used = {record.shard for record in records} | {record.residual_shard for record in records}
    for path in (folder / "pixels").glob("*.npy"):
        if path.name not in used:
            path.unlink()


def read_store(folder: Path | str) -> EchoSet:
    """Read what ``encode-echo`` left.

    Raises:
        InputError: The folder holds no echoes, a table is damaged, or a group is in two splits.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the folder of echoes is missing", where=folder, remedy="run encode-echo first")
    for name in ("clips.parquet", "echo.parquet"):
        if not (folder / name).is_file():
            raise InputError(
                "the folder holds no echoes",
                where=folder,
                why=f"{name} is missing",
                remedy="name the OUT of encode-echo",
            )
    path = folder / "clips.parquet"
    try:
        clip_rows = pq.read_table(path).to_pylist()
        path = folder / "echo.parquet"
        echo_rows = pq.read_table(path).to_pylist()
        setting_names = [field.name for field in dataclasses.fields(EncodeSetting)]
        by_clip: dict[str, list[dict[str, Any]]] = {}
        for row in echo_rows:
            by_clip.setdefault(row["clip_id"], []).append(row)
        first = by_clip[clip_rows[0]["clip_id"]]
        settings = tuple(EncodeSetting(**{name: row[name] for name in setting_names}) for row in first)
        clips = tuple(
            ClipRecord(**row, keys=tuple(each["key"] for each in by_clip[row["clip_id"]])) for row in clip_rows
        )
        measured = {
            name: np.array([[each[name] for each in by_clip[clip.clip_id]] for clip in clips], dtype=np.float64)
            for name in _MEASURED
        }
    except (OSError, pa.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            "the table of echoes cannot be read",
            where=path,
            why=" ".join(str(error).split()),
            remedy="run encode-echo again with the same output",
        ) from error
    check_disjoint([clip.group for clip in clips], [clip.split for clip in clips], where=folder)
    return EchoSet(folder, clips, settings, measured)


def clip_frames(folder: Path) -> dict[str, Any]:
    """Settings of the clips in a folder of echoes."""
    return dict(read_json(folder / "settings.json")["clips"])
