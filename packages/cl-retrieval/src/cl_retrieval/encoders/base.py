"""What a frozen encoder of images and texts is."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image


@runtime_checkable
class Encoder(Protocol):
    """Images and texts to unit features of one space."""

    @property
    def name(self) -> str:
        """For people, and for telling two encoders apart in messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the features: weights, preprocessing, tokenizer."""
        ...

    @property
    def dim(self) -> int:
        """Width of the features."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        """Unit features of RGB images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit features of texts."""
        ...
