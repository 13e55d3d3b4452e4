"""Trained APKH: features to packed codes, and the attributes that explain them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from cl_retrieval.apkh.attributes import ATTRIBUTES, Bank
from cl_retrieval.apkh.model import APKH, APKHConfig
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.pairs.features import Origin


class APKHEncoder(HashEncoder):
    """Hash functions over attributes; encoding needs no text tower, the centres are part of the model.

    Args:
        model: Kernels and head.
        origin: Encoder of the features.
        bank: Attributes, one a kernel.
        facts: What training found out, for its report.
    """

    kind: ClassVar[str] = "apkh"

    def __init__(
        self,
        model: APKH,
        origin: Origin = Origin(),
        bank: Bank = Bank(ATTRIBUTES),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, origin, facts)
        self.bank = bank

    @torch.no_grad()
    def activations(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
        """How much unit features excite each attribute."""
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self.device)
        return self.model.kernel(rows).cpu().numpy()

    def described(self) -> dict[str, Any]:
        """The attributes."""
        return {"attributes": list(self.bank.phrases), "template": self.bank.template}

    @classmethod
    def build(cls, state: dict[str, Any], description: dict[str, Any], origin: Origin) -> Any:
        """The encoder of weights and description."""
        phrases, template = description["attributes"], description["template"]
        if not all(isinstance(each, str) for each in (template, *phrases)) or len(phrases) != len(state["centres"]):
            raise ValueError("the attributes are not one text a kernel")
        model = APKH(state["centres"], APKHConfig(**description["config"]))
        model.load_state_dict(state)
        return cls(model, origin, Bank(tuple(phrases), template, "the model"))
