"""Frozen encoders of images and texts: CLIP through open_clip, and a stand-in that installs from packages."""

from pathlib import Path

from contrastive_core.errors import InputError

from cl_retrieval.encoders.base import Encoder

DEFAULT_ENCODER = "open_clip:ViT-B-16-quickgelu/openai"

__all__ = ["DEFAULT_ENCODER", "Encoder", "load_encoder"]


def load_encoder(source: str, *, device: str = "cpu", dtype: str = "float32") -> Encoder:
    """Load an encoder.

    Args:
        source: ``open_clip:ARCHITECTURE/TAG``, ``open_clip:ARCHITECTURE/path/to/checkpoint``, ``local-dir:FOLDER`` (as
            open_clip saves a model), or the folder of a stand-in encoder, as ``sample-data`` writes one.
        device: Device of open_clip models.
        dtype: Their precision: float32, bfloat16 or float16.

    Raises:
        InputError: There is no such encoder, or it cannot be loaded; says how to go on offline.
    """
    if source.startswith("open_clip:"):
        from cl_retrieval.encoders.clip import OpenClipEncoder

        architecture, _, weights = source.removeprefix("open_clip:").partition("/")
        if not weights:
            raise InputError(
                "the weights of the encoder are not named",
                where="--encoder",
                why=f"got {source}",
                remedy="use open_clip:ARCHITECTURE/TAG, or a path instead of the tag",
            )
        return OpenClipEncoder(architecture, weights, device=device, dtype=dtype)
    if source.startswith("local-dir:"):
        from cl_retrieval.encoders.clip import OpenClipEncoder

        folder = Path(source.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                "the folder holds no open_clip model",
                where=folder,
                why="open_clip_config.json is missing",
                remedy="save it with open_clip.push_to_hf_hub's save_for_hf, or name a checkpoint file instead",
            )
        return OpenClipEncoder(source, device=device, dtype=dtype)
    if (Path(source) / "model.json").is_file():
        from cl_retrieval.encoders.standin import StandInEncoder

        return StandInEncoder.load(Path(source))
    raise InputError(
        "there is no such encoder",
        where="--encoder",
        why=f"got {source}",
        remedy=f"use {DEFAULT_ENCODER}, open_clip:ARCHITECTURE/path/to/weights, local-dir:FOLDER, or the folder of a "
        "stand-in encoder from sample-data",
    )
