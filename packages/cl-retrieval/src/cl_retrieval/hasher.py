"""A trained model with what its features come from: the common ground of both methods' commands."""

import dataclasses
import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_json
from contrastive_core.index.interface import CodeModel, Modality
from contrastive_core.training.run_folder import RunFolder
from jaxtyping import Float, UInt8

from cl_retrieval.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from cl_retrieval.hashing.codes import binary_codes
from cl_retrieval.hashing.learning import HashModel
from cl_retrieval.hashing.split import Split
from cl_retrieval.pairs.embedding import cached_features, encode_image_files, encode_sentences
from cl_retrieval.pairs.features import PRECOMPUTED, PairFeatures, check_width, is_features, read_features
from cl_retrieval.pairs.raw import read_pairs

_MODELS = {"gnah": "cl_retrieval.gnah.model", "apkh": "cl_retrieval.apkh.model"}
"""Where a model of each kind is restored."""


def load_model(run: RunFolder, *, kind: str | None = None) -> tuple[HashModel, dict[str, Any]]:
    """Read a trained model and its description.

    Args:
        run: Run folder of train.
        kind: Accept models of this kind only.

    Raises:
        InputError: The folder holds a model of another kind, or a corrupt one.
    """
    state, description = run.load_model()
    found = description.get("kind")
    accepted = [kind] if kind else list(_MODELS)
    if found not in accepted:
        raise InputError(
            f"the run is not one of {' or '.join(accepted)}",
            where=run.path,
            why=f"it holds a model of kind {found!r}",
            remedy="use the commands of the method it was trained with",
        )
    return import_module(_MODELS[found]).restore(state, description), description


@dataclasses.dataclass(frozen=True)
class Hasher:
    """A trained model, opened from its run folder.

    Attributes:
        run: The run folder.
        model: Hash functions.
        description: What ``model.json`` holds.
        identity: What its codes are known by in an index.
    """

    run: Path
    model: HashModel
    description: dict[str, Any]
    identity: CodeModel

    @classmethod
    def open(cls, path: Path, *, kind: str | None = None) -> "Hasher":
        """Open a run.

        Args:
            path: Run folder.
            kind: Accept models of this kind only.

        Raises:
            InputError: There is no such run, or it holds a model of another kind.
        """
        run = RunFolder.open(path)
        model, description = load_model(run, kind=kind)
        weights = str(dict(read_json(path / "model.json"))["weights_sha256"])
        encoder = str(description["encoder_fingerprint"])
        identity = CodeModel(
            name=f"{description['kind']} {model.bits} bit on {description['encoder']}",
            fingerprint=hashlib.sha256(f"{weights}{encoder}".encode()).hexdigest()[:24],
            bits=model.bits,
        )
        return cls(path, model, description, identity)

    def split(self) -> Split:
        """The division of the data the model was trained with."""
        return Split.from_dict(read_json(self.run / "split.json"))

    def encoder(self, source: str | None, *, device: str = "cpu") -> Encoder:
        """The encoder of the model's features.

        Args:
            source: Where to load it from; where training loaded it from by default.
            device: Device of open_clip models.

        Raises:
            InputError: It is not known, cannot be loaded, or is another one than the model's.
        """
        named = source or str(self.description.get("encoder_source") or "")
        if not named:
            raise InputError(
                "the model was trained on features, and its encoder is not known",
                where=self.run,
                remedy="name it with --encoder, or give features instead of images and texts",
            )
        found = load_encoder(named, device=device)
        expected = str(self.description["encoder_fingerprint"])
        if expected.startswith(PRECOMPUTED):
            check_width(np.empty((0, found.dim), np.float32), self.model.dim, named)
        elif found.fingerprint != expected:
            raise InputError(
                "the encoder is another one than the model's",
                where=named,
                why=f"it is {found.name} ({found.fingerprint}), "
                f"the model's is {self.description['encoder']} ({expected})",
                remedy="name the encoder the model was trained with",
            )
        return found

    def features(
        self, data: Path, *, encoder: str | None, normalise: bool = False, device: str = "cpu"
    ) -> PairFeatures:
        """Features of pairs for this model: read, or computed with its encoder.

        Raises:
            InputError: Features of another width or encoder, or pairs that cannot be read.
        """
        if is_features(data):
            found = read_features(data, normalise=normalise)
            self.check(found, data)
            return found
        return cached_features(read_pairs(data), self.encoder(encoder, device=device), source=encoder or "")

    def check(self, features: PairFeatures, where: object) -> None:
        """Refuse features of another width or encoder than the model's.

        Raises:
            InputError: They are; both encoders are named.
        """
        check_width(features.image, self.model.dim, where)
        expected = str(self.description["encoder_fingerprint"])
        known = not (expected.startswith(PRECOMPUTED) or features.fingerprint.startswith(PRECOMPUTED))
        if known and features.fingerprint != expected:
            raise InputError(
                "the features are of another encoder than the model's",
                where=where,
                why=f"of {features.encoder} ({features.fingerprint}), "
                f"the model's are of {self.description['encoder']} ({expected})",
                remedy="compute them with the encoder the model was trained with",
            )

    def hash(self, features: Float[np.ndarray, "n d"], modality: Modality) -> UInt8[np.ndarray, "n bytes"]:
        """Packed codes of unit features."""
        return binary_codes(self.model, features, modality)


def training_features(data: Path, *, encoder: str | None, normalise: bool, device: str) -> PairFeatures:
    """Features to train on: a feature file as it is, pairs through an encoder.

    Args:
        data: Feature file, or pairs.
        encoder: Encoder of pairs; ``encoder/`` beside them if there is one, CLIP ViT-B/16 otherwise. Remembered for
            feature files too.
        normalise: Bring rows of a feature file to unit length, whatever lengths are mixed.
        device: Device of the encoder.
    """
    if is_features(data):
        found = read_features(data, normalise=normalise)
        return dataclasses.replace(found, source=encoder or found.source)
    source = default_encoder(data, encoder)
    return cached_features(read_pairs(data), load_encoder(source, device=device), source=source)


def default_encoder(data: Path, encoder: str | None) -> str:
    """The encoder named, else the one that lies beside the pairs (as sample data do), else CLIP."""
    if encoder is not None:
        return encoder
    beside = (data if data.is_dir() else data.parent) / "encoder"
    return str(beside) if (beside / "model.json").is_file() else DEFAULT_ENCODER


def query_features(
    hasher: Hasher, *, text: Sequence[str], image: Sequence[Path], encoder: str | None, device: str
) -> list[tuple[str, Modality, Float[np.ndarray, "1 d"]]]:
    """Features of texts and image files to search with, each with its name and modality.

    Raises:
        InputError: Neither is given, an empty text, or an unreadable image.
    """
    if not text and not image:
        raise InputError(
            "there is nothing to search for", where="--text, --image", remedy="give a text or an image file"
        )
    if any(not each.strip() for each in text):
        raise InputError("a text is empty", where="--text", remedy="give some words")
    source = hasher.encoder(encoder, device=device)
    found: list[tuple[str, Modality, np.ndarray]] = []
    if text:
        rows = encode_sentences([[each] for each in text], source)
        found += [(each, "text", rows[i : i + 1]) for i, each in enumerate(text)]
    if image:
        rows = encode_image_files(image, source)
        found += [(str(each), "image", rows[i : i + 1]) for i, each in enumerate(image)]
    return found
