"""Features of raw pairs, computed once and kept by the hash of what they were computed from."""

import dataclasses
import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from contrastive_core.arrays import load_npz
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import atomic_write
from jaxtyping import Float

from cl_retrieval.encoders.base import Encoder
from cl_retrieval.pairs.features import PairFeatures, check_features, write_features
from cl_retrieval.pairs.raw import open_image
from cl_retrieval.pairs.rows import RawPairs

SHARD = 512


def content_hashes(pairs: RawPairs) -> list[str]:
    """Hash of each pair's image file and sentences."""
    out = []
    for image, sentences in zip(pairs.images, pairs.texts, strict=True):
        digest = hashlib.sha256(image.read_bytes())
        for sentence in sentences:
            digest.update(b"\0" + sentence.encode())
        out.append(digest.hexdigest())
    return out


def embed_pairs(
    pairs: RawPairs, encoder: Encoder, *, parts: Path, batch_size: int = 64
) -> tuple[PairFeatures, list[str]]:
    """Encode images and texts, a shard at a time; shards that are there already are read.

    Several sentences of an image are encoded one by one; their unit features are averaged and brought to unit length.

    Args:
        pairs: Images with texts.
        encoder: Frozen encoder.
        parts: Folder of the shards, each named by encoder and content.
        batch_size: Images a pass.

    Returns:
        The features, and the hash of each pair's content.

    Raises:
        InputError: An image cannot be read.
    """
    contents = content_hashes(pairs)
    images, texts = [], []
    for start in range(0, len(pairs), SHARD):
        rows = range(start, min(start + SHARD, len(pairs)))
        key = hashlib.sha256("".join([encoder.fingerprint, *(contents[i] for i in rows)]).encode()).hexdigest()[:24]
        path = parts / f"{key}.npz"
        shard = _stored(path, (len(rows), encoder.dim))
        if shard is None:
            image = encode_image_files([pairs.images[i] for i in rows], encoder, batch_size=batch_size)
            text = encode_sentences([pairs.texts[i] for i in rows], encoder, batch_size=batch_size)
            with atomic_write(path) as temporary:
                np.savez(temporary, image=image, text=text)
            shard = (image, text)
        images.append(shard[0])
        texts.append(shard[1])
    labels, classes = pairs.one_hot()
    features = PairFeatures(
        pairs.ids,
        np.concatenate(images),
        np.concatenate(texts),
        labels,
        classes,
        texts=tuple(" ".join(each) for each in pairs.texts),
        images=tuple(str(path) for path in pairs.images),
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
    )
    return check_features(features, pairs.folder), contents


def embed_to_file(pairs: RawPairs, encoder: Encoder, out: Path, *, source: str, batch_size: int = 64) -> PairFeatures:
    """Encode pairs into a feature file; an interrupted call continues with the shards it had finished.

    Args:
        pairs: Images with texts.
        encoder: Frozen encoder.
        out: ``.npz`` to write.
        source: How the encoder is loaded, remembered for later.
        batch_size: Images a pass.
    """
    if out.suffix != ".npz":
        raise InputError("features are written as .npz", where=out, remedy="end the name in .npz")
    parts = out.with_name(f"{out.name}.parts")
    features, contents = embed_pairs(pairs, encoder, parts=parts, batch_size=batch_size)
    features = dataclasses.replace(features, source=source)
    write_features(out, features, contents)
    shutil.rmtree(parts, ignore_errors=True)
    return features


def cached_features(pairs: RawPairs, encoder: Encoder, *, source: str, batch_size: int = 64) -> PairFeatures:
    """Features of raw pairs from the cache of this user, computed where they are not in it.

    The cache is ``$XDG_CACHE_HOME/cl-retrieval`` (``~/.cache/cl-retrieval``); its files are named by encoder and
    content, so a changed image, text or encoder is computed anew.
    """
    features, _ = embed_pairs(pairs, encoder, parts=cache_folder(), batch_size=batch_size)
    return dataclasses.replace(features, source=source)


def cache_folder() -> Path:
    """Where features are kept between commands."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "cl-retrieval"


def _stored(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """A shard of the cache; nothing where there is none, or a damaged one, which is then computed anew."""
    if not path.is_file():
        return None
    try:
        shard = load_npz(path, ("image", "text"))
    except InputError:
        shard = {}
    if any(name not in shard or shard[name].shape != shape for name in ("image", "text")):
        warnings.warn(f"{path} is damaged; its features are computed anew", ContrastiveWarning, stacklevel=3)
        return None
    return shard["image"], shard["text"]


def encode_image_files(paths: Sequence[Path], encoder: Encoder, *, batch_size: int = 64) -> Float[np.ndarray, "n d"]:
    """Unit features of image files.

    Raises:
        InputError: One cannot be read.
    """
    blocks = [
        encoder.encode_images([open_image(path) for path in paths[start : start + batch_size]])
        for start in range(0, len(paths), batch_size)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, encoder.dim), np.float32)


def encode_sentences(
    texts: Sequence[Sequence[str]], encoder: Encoder, *, batch_size: int = 64
) -> Float[np.ndarray, "n d"]:
    """Unit features of texts of one or several sentences: the mean of their unit features, at unit length."""
    flat = [sentence for sentences in texts for sentence in sentences if sentence.strip()]
    owner = np.repeat(np.arange(len(texts)), [sum(bool(s.strip()) for s in each) for each in texts])
    blocks = [encoder.encode_texts(flat[start : start + batch_size]) for start in range(0, len(flat), batch_size)]
    rows = np.concatenate(blocks) if blocks else np.empty((0, encoder.dim), np.float32)
    sums = np.zeros((len(texts), rows.shape[1]), np.float64)
    np.add.at(sums, owner, rows)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
