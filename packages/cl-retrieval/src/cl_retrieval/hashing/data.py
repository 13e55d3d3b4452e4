"""Features to train on, to encode and to search with: read from files, or computed with the encoder they belong to."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError
from contrastive_core.index.interface import Modality
from jaxtyping import Float

from cl_retrieval.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.pairs.checks import check_width
from cl_retrieval.pairs.embedding import cached_features, encode_image_files, encode_sentences
from cl_retrieval.pairs.features import PairFeatures, is_features, read_features
from cl_retrieval.pairs.raw import read_pairs


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """Where features come from.

    Attributes:
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as ``encoder``, else CLIP ViT-B/16. Not needed for feature files.
        device: auto (a GPU where there is one), cpu or cuda.
        normalise: Bring every row of a feature file to unit length, also where normalised and raw rows are mixed.
    """

    encoder: str | None = None
    device: str = "auto"
    normalise: bool = False

    def load(self, source: str, *, dtype: str = "float32") -> Encoder:
        """An encoder, on the device they name."""
        return load_encoder(source, device=pick_device(self.device), dtype=dtype)


class Query(NamedTuple):
    """What is searched for: its name, its modality, and a unit row of features."""

    name: str
    modality: Modality
    row: Float[np.ndarray, "1 d"]


def training_features(data: Path, options: FeatureOptions) -> PairFeatures:
    """Features to train on: a feature file as it is, pairs through an encoder (remembered for feature files too)."""
    if is_features(data):
        features = read_features(data, normalise=options.normalise)
        return dataclasses.replace(features, source=options.encoder or features.source)
    source = default_encoder(data, options.encoder)
    return cached_features(read_pairs(data), options.load(source), source=source)


def features_for(hashes: HashEncoder, data: Path, options: FeatureOptions) -> PairFeatures:
    """Features of pairs for a model: read, or computed with its encoder.

    Raises:
        InputError: Features of another width or encoder, or pairs that cannot be read.
    """
    if is_features(data):
        features = read_features(data, normalise=options.normalise)
        hashes.check(features, data)
        return features
    return cached_features(read_pairs(data), encoder_of(hashes, options), source=options.encoder or "")


def encoder_of(hashes: HashEncoder, options: FeatureOptions) -> Encoder:
    """The encoder of a model's features, from where the options say, or training loaded it from.

    Raises:
        InputError: It is not known, cannot be loaded, or is another one than the model's.
    """
    named = options.encoder or hashes.origin.source
    if not named:
        raise InputError(
            "the model was trained on features, and its encoder is not known",
            where="--encoder",
            remedy="name it with --encoder, or give features instead of images and texts",
        )
    encoder = options.load(named)
    if not hashes.origin.known:
        check_width(np.empty((0, encoder.dim), np.float32), hashes.dim, named)
    elif encoder.fingerprint != hashes.origin.fingerprint:
        raise InputError(
            "the encoder is another one than the model's",
            where=named,
            why=f"it is {encoder.name} ({encoder.fingerprint}), "
            f"the model's is {hashes.origin.encoder} ({hashes.origin.fingerprint})",
            remedy="name the encoder the model was trained with",
        )
    return encoder


def default_encoder(data: Path, encoder: str | None) -> str:
    """The encoder named, else the one that lies beside the pairs (as sample data do), else CLIP."""
    if encoder is not None:
        return encoder
    beside = (data if data.is_dir() else data.parent) / "encoder"
    return str(beside) if (beside / "model.json").is_file() else DEFAULT_ENCODER


def queries_of(
    hashes: HashEncoder, *, text: Sequence[str], image: Sequence[Path], options: FeatureOptions
) -> list[Query]:
    """Texts and image files to search with.

    Raises:
        InputError: Neither is given, an empty text, or an unreadable image.
    """
    if not text and not image:
        raise InputError(
            "there is nothing to search for", where="--text, --image", remedy="give a text or an image file"
        )
    if any(not each.strip() for each in text):
        raise InputError("a text is empty", where="--text", remedy="give some words")
    encoder = encoder_of(hashes, options)
    texts = encode_sentences([[each] for each in text], encoder)
    images = encode_image_files(image, encoder)
    return [
        *(Query(each, "text", row[None]) for each, row in zip(text, texts, strict=True)),
        *(Query(str(each), "image", row[None]) for each, row in zip(image, images, strict=True)),
    ]


def queries_in(hashes: HashEncoder, path: Path, asking: Modality, *, normalise: bool) -> list[Query]:
    """One side of a feature file to search with.

    Raises:
        InputError: Features of another width or encoder than the model's.
    """
    features = read_features(path, normalise=normalise)
    hashes.check(features, path)
    return [Query(name, asking, row[None]) for name, row in zip(features.ids, features.of(asking), strict=True)]
