"""The trained encoder: embeddings of clips, of measured echoes and of new videos, and the nearest among them."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError, require
from contrastive_core.files import atomic_write, reading
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, Float32, UInt8

from cl_video3d.cecl.clips import ClipSettings, plan_clips
from cl_video3d.cecl.data import EchoSet
from cl_video3d.cecl.model import EchoModel, ModelConfig
from cl_video3d.video.encoding import Codec
from cl_video3d.video.manifest import Entry, read_manifest
from cl_video3d.video.planes import scaled_size
from cl_video3d.video.reading import RawFormat, luma, probe
from cl_video3d.video.windows import read_windows

KIND = "cecl"
_CORNERS = [(t, y, x) for t in (0, 1) for y in (0, 1) for x in (0, 1)]


@dataclasses.dataclass(frozen=True)
class VideoEmbedding:
    """Embeddings of the clips of one video at one size.

    Attributes:
        video_id: The video.
        path: Its file.
        group: Title or source.
        short_side: Short side its frames were resized to; 0 for native pixels.
        width: Width of the frames.
        height: Height of the frames.
        fps: Frames a second of the clips.
        z: One row a clip.
    """

    video_id: str
    path: Path
    group: str
    short_side: int
    width: int
    height: int
    fps: float
    z: Float[np.ndarray, "n d"]

    @property
    def name(self) -> str:
        """The id, with the size where it is not the video's own."""
        return f"{self.video_id} at {self.short_side}" if self.short_side else self.video_id


class EchoEncoder:
    """Tells from the pixels of a clip how hard it is to encode; needs no encodes.

    Args:
        model: Video tower and projection; only the tower is used.
        view: Frames, height and width of the views it was trained on.
        cut: How clips are cut from videos.
        codec: Codec whose echo was learned.
        split: Split it was trained on, or ``all``.
        device: Where it runs.
    """

    def __init__(
        self,
        model: EchoModel,
        *,
        view: tuple[int, int, int],
        cut: ClipSettings,
        codec: Codec = "h264",
        split: str = "all",
        device: str = "cpu",
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.view, self.cut, self.codec, self.split = view, cut, codec, split

    @torch.inference_mode()
    def embed(self, clips: UInt8[np.ndarray, "n t h w"], *, batch: int = 16) -> Float32[np.ndarray, "n d"]:
        """Embed clips: the mean over the corners and both ends in time, by views of the size of training.

        Args:
            clips: Luma, not smaller than a view.
            batch: Clips at a time.

        Raises:
            InputError: The clips are smaller than a view.
        """
        room = [whole - part for whole, part in zip(clips.shape[1:], self.view, strict=True)]
        if min(room) < 0:
            raise InputError(
                "the clips are smaller than a view",
                where="clips",
                why=f"{clips.shape[1:]} frames, rows and columns; the encoder was trained on {self.view}",
            )
        corners = list(dict.fromkeys(tuple(r * c for r, c in zip(room, corner, strict=True)) for corner in _CORNERS))
        frames, height, width = self.view
        parts = [np.zeros((0, self.model.config.dim), dtype=np.float32)]
        for start in range(0, len(clips), batch):
            part = torch.from_numpy(np.ascontiguousarray(clips[start : start + batch])).to(self.device)
            views = [part[:, t : t + frames, y : y + height, x : x + width].float() / 255 for t, y, x in corners]
            z = self.model.encoder(torch.cat(views)).reshape(len(corners), len(part), -1).mean(0)
            parts.append(z.cpu().numpy())
        return np.concatenate(parts)

    def embed_echoes(self, echoes: EchoSet) -> Float32[np.ndarray, "n d"]:
        """Embed measured clips."""
        return np.concatenate([self.embed(luma(block)) for block in echoes.blocks()])

    def embed_videos(
        self, videos: Path | str | Sequence[Entry], *, raw: RawFormat = RawFormat()
    ) -> tuple[list[VideoEmbedding], list[str]]:
        """Embed videos, cut as in training.

        Args:
            videos: A CSV, a folder, one video, or the entries of a list.
            raw: Layout of headerless files.

        Returns:
            One entry a video and size; and what could not be used, with the reason.

        Raises:
            InputError: No video could be used.
        """
        entries = read_manifest(videos) if isinstance(videos, str | os.PathLike) else videos
        embedded: list[VideoEmbedding] = []
        errors: list[tuple[Path, InputError]] = []
        for entry in entries:
            try:
                info = probe(entry.path, raw=raw)
            except InputError as error:
                errors.append((entry.path, error))
                continue
            for short_side in self.cut.short_sides:
                try:
                    embedded.append(self._embed_video(info, entry, short_side))
                except InputError as error:
                    errors.append((entry.path, error))
        if not embedded:
            raise errors[0][1] if errors else InputError("there are no videos")
        return embedded, [f"{path}: {e.what}" + (f" ({e.why})" if e.why else "") for path, e in errors]

    def _embed_video(self, info: Any, entry: Entry, short_side: int) -> VideoEmbedding:
        stride = self.cut.stride_of(info.fps)
        windows = read_windows(
            info,
            plan_clips(info, entry, self.cut, short_side),
            length=self.cut.frames,
            stride=stride,
            size=self.cut.size,
            short_side=short_side,
        )
        parts = [z for _, z in sorted((number, self.embed(luma(frames)[None])) for number, frames in windows)]
        if not parts:
            raise InputError("no clip could be decoded", where=entry.path, why="all of them touch damaged packets")
        width, height = scaled_size(info.width, info.height, short_side)
        fps = info.fps / stride
        z = np.concatenate(parts)
        return VideoEmbedding(entry.video_id, entry.path, entry.group, short_side, width, height, fps, z)

    def fingerprint(self) -> str:
        """A checksum of the weights, by which embeddings are known to be of one encoder."""
        digest = hashlib.sha256()
        for value in self.model.encoder.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def description(self) -> dict[str, Any]:
        """Everything besides the weights."""
        return {
            "config": dataclasses.asdict(self.model.config),
            "view": list(self.view),
            "clips": dataclasses.asdict(self.cut),
            "codec": self.codec,
            "split": self.split,
        }

    def save(self, folder: Path | str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        save_weights(folder, self.model.state_dict(), {"kind": KIND, **self.description()})

    @classmethod
    def load(cls, folder: Path | str | os.PathLike[str], *, device: str = "auto") -> "EchoEncoder":
        """Read it back.

        Raises:
            InputError: The folder holds no encoder, or there is no such device.
        """
        return load_model(
            folder, KIND, lambda state, about: cls.rebuilt(state, about, device), made_by="cl-video3d cecl train"
        )

    @classmethod
    def rebuilt(cls, state: dict[str, Any], about: dict[str, Any], device: str) -> "EchoEncoder":
        """From its weights and :meth:`description`."""
        model = EchoModel(ModelConfig(**about["config"]))
        model.load_state_dict(state)
        cut = ClipSettings(**{**about["clips"], "short_sides": tuple(about["clips"]["short_sides"])})
        frames, height, width = (int(value) for value in about["view"])
        codec, split = about["codec"], about["split"]
        return cls(model, view=(frames, height, width), cut=cut, codec=codec, split=split, device=device)


@dataclasses.dataclass(frozen=True)
class EmbeddingIndex:
    """Embeddings on disk, of clips or videos.

    Attributes:
        z: One row each.
        ids: Their names.
        groups: Their sources.
        videos: Their videos.
        encoder: Fingerprint of the encoder that made them.
    """

    z: Float[np.ndarray, "n d"]
    ids: Sequence[str]
    groups: Sequence[str]
    videos: Sequence[str]
    encoder: str

    def per_video(self) -> "EmbeddingIndex":
        """The mean over the clips of each video."""
        names = list(dict.fromkeys(self.videos))
        rows: dict[str, list[int]] = {name: [] for name in names}
        for row, name in enumerate(self.videos):
            rows[name].append(row)
        z = np.stack([self.z[rows[name]].mean(0) for name in names])
        return EmbeddingIndex(z, names, [self.groups[rows[name][0]] for name in names], names, self.encoder)

    def nearest(self, query: Float[np.ndarray, " d"], encoder: EchoEncoder, *, top: int = 10) -> list[dict[str, Any]]:
        """Nearest videos by complexity: by cosine of standardised embeddings, some dimensions of which hardly vary.

        Args:
            query: Mean embedding of a video.
            encoder: What embedded it.
            top: Videos wanted.

        Raises:
            InputError: The index is of another encoder.
        """
        require(1 <= top <= 10**6, "--top", top, "a whole number from 1")
        if encoder.fingerprint() != self.encoder:
            raise InputError(
                "the index is of another encoder", where="RUN, INDEX", remedy="write it with embed and this run"
            )
        known = self.per_video()
        mean, scale = known.z.mean(0), known.z.std(0) + 1e-6
        a, b = (known.z - mean) / scale, (query - mean) / scale
        cosine = a @ b / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b), 1e-12)
        order = np.argsort(-cosine, kind="stable")[:top]
        return [
            {"rank": rank, "video": known.ids[i], "similarity": float(cosine[i])} for rank, i in enumerate(order, 1)
        ]

    def save(self, path: Path) -> None:
        """Write ``.npz``.

        Raises:
            InputError: The name has another ending.
        """
        if path.suffix != ".npz":
            raise InputError("embeddings are written as .npz", where=path, remedy="end the name in .npz")
        ids, groups, videos = (np.array(names, np.str_) for names in (self.ids, self.groups, self.videos))
        with atomic_write(path) as temporary:
            np.savez(temporary, z=self.z, ids=ids, groups=groups, videos=videos, encoder=np.array(self.encoder))

    @classmethod
    def load(cls, path: Path) -> "EmbeddingIndex":
        """Read it back.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        with (
            reading(path, "the index cannot be read", "write it with embed"),
            np.load(path, allow_pickle=False) as file,
        ):
            z = np.asarray(file["z"], dtype=np.float32)
            ids, groups, videos = (file[name].tolist() for name in ("ids", "groups", "videos"))
            if z.ndim != 2 or not np.isfinite(z).all() or not len(z) == len(ids) == len(groups) == len(videos):
                raise InputError("the index holds no embeddings", where=path, why=f"z has the shape {z.shape}")
            return cls(z, ids, groups, videos, str(file["encoder"]))


def embed_source(
    encoder: EchoEncoder, source: Path, *, raw: RawFormat = RawFormat()
) -> tuple[EmbeddingIndex, list[str]]:
    """Embeddings of a folder of ``encode-echo``, or of videos, which need no encodes.

    Returns:
        One row a clip; and what could not be used.
    """
    from cl_video3d.cecl.folder import TABLES, read_echoes

    if (source / TABLES[0]).is_file():
        echoes = read_echoes(source)
        z = encoder.embed_echoes(echoes)
        return EmbeddingIndex(z, echoes.ids, echoes.groups, echoes.videos, encoder.fingerprint()), []
    embedded, failures = encoder.embed_videos(source, raw=raw)
    ids = [f"{e.video_id}@{e.short_side or 'native'}#{k:05d}" for e in embedded for k in range(len(e.z))]
    groups, videos = ([getattr(e, name) for e in embedded for _ in e.z] for name in ("group", "video_id"))
    z = np.concatenate([e.z for e in embedded])
    return EmbeddingIndex(z, ids, groups, videos, encoder.fingerprint()), failures
