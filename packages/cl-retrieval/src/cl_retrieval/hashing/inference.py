"""A trained pair of hash functions: from features to packed codes, saved and loaded."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from contrastive_core.devices import pick_device
from contrastive_core.errors import InputError
from contrastive_core.index.interface import CodeModel, Modality
from contrastive_core.weights import load_model, save_weights
from jaxtyping import Float, UInt8

from cl_retrieval.hashing.codes import binary_codes
from cl_retrieval.pairs.checks import check_width, digest_arrays, unit_rows
from cl_retrieval.pairs.features import Origin, PairFeatures

E = TypeVar("E", bound="HashEncoder")


class HashEncoder(ABC):
    """Hash functions of images and texts, with what their features were made with.

    Args:
        model: The functions, a :class:`cl_retrieval.hashing.codes.HashModel`, on the CPU.
        origin: Encoder of the features.
        facts: What training found out, for its report; not saved.

    Attributes:
        kind: What ``model.json`` calls the method, and the method's own command.
    """

    kind: ClassVar[str]

    def __init__(self, model: Any, origin: Origin = Origin(), facts: Mapping[str, Any] | None = None) -> None:
        self.model, self.origin, self.facts, self.device = model.eval(), origin, facts or {}, "cpu"

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.model.dim

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.model.bits

    @functools.cached_property
    def identity(self) -> CodeModel:
        """What the codes are known by in an index: method, encoder, and a digest of weights and encoder."""
        state = self.model.state_dict()
        weights = digest_arrays(*(state[name].cpu().numpy() for name in sorted(state)))
        name = f"{self.kind} {self.bits} bit on {self.origin.encoder}"
        return CodeModel(name, digest_arrays(np.array([weights, self.origin.fingerprint]))[:24], self.bits)

    def encode(self, features: Float[np.ndarray, "n d"], modality: Modality) -> UInt8[np.ndarray, "n bytes"]:
        """Packed codes, first bit highest, padded with zeros to whole bytes.

        Args:
            features: Unit rows of one modality.
            modality: ``image`` or ``text``.

        Raises:
            InputError: Another width than the model's, or rows that are not finite or not of unit length.
        """
        check_width(features, self.dim, f"{modality} features")
        if not unit_rows(features, modality).all():
            raise InputError(
                f"the {modality} features are not of unit length", remedy="divide every row by its length first"
            )
        return binary_codes(self.model, features, modality, device=self.device)

    def check(self, features: PairFeatures, where: object) -> None:
        """Refuse features of another width or encoder than the model's.

        Raises:
            InputError: They are; both encoders are named.
        """
        check_width(features.image, self.dim, where)
        if self.origin.known and features.origin.known and features.fingerprint != self.origin.fingerprint:
            raise InputError(
                "the features are of another encoder than the model's",
                where=where,
                why=f"of {features.encoder} ({features.fingerprint}), "
                f"the model's are of {self.origin.encoder} ({self.origin.fingerprint})",
                remedy="compute them with the encoder the model was trained with",
            )

    def save(self, folder: Any) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a folder or a run."""
        origin = {
            "encoder": self.origin.encoder,
            "encoder_fingerprint": self.origin.fingerprint,
            "encoder_source": self.origin.source,
        }
        config = dataclasses.asdict(self.model.config)
        description = {"kind": self.kind, "dim": self.dim, "config": config, **self.described(), **origin}
        save_weights(folder, self.model.state_dict(), description)

    @classmethod
    def load(cls: type[E], folder: Path | str, *, device: str = "cpu") -> E:
        """Read what :meth:`save` wrote.

        Args:
            folder: Run folder of training, or any folder it was saved to.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            InputError: There is no such folder, it holds a model of another kind, or a corrupt one.
        """
        encoder = load_model(folder, cls.kind, cls._restore, made_by=f"cl-retrieval {cls.kind} train")
        encoder.device = pick_device(device)
        encoder.model.to(encoder.device)
        return encoder

    def described(self) -> dict[str, Any]:
        """What else :meth:`build` needs."""
        return {}

    @classmethod
    @abstractmethod
    def build(cls, state: dict[str, Any], description: dict[str, Any], origin: Origin) -> Any:
        """The encoder of weights and description."""

    @classmethod
    def _restore(cls: type[E], state: dict[str, Any], description: dict[str, Any]) -> E:
        parts = [description[name] for name in ("encoder", "encoder_fingerprint", "encoder_source")]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("the encoder's names are texts")
        return cls.build(state, description, Origin(*parts))
