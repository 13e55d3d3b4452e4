"""Trained GNAH: features to packed codes."""

from typing import Any, ClassVar

from cl_retrieval.gnah.model import GNAH, GNAHConfig
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.pairs.features import Origin


class GNAHEncoder(HashEncoder):
    """Hash functions of images and texts, one of each."""

    kind: ClassVar[str] = "gnah"

    @classmethod
    def build(cls, state: dict[str, Any], description: dict[str, Any], origin: Origin) -> Any:
        """The encoder of weights and description."""
        model = GNAH(int(description["dim"]), GNAHConfig(**description["config"]))
        model.load_state_dict(state)
        return cls(model, origin)
