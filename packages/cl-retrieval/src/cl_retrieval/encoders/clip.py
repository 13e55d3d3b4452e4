"""CLIP and its kin through open_clip."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_core.errors import InputError
from jaxtyping import Float
from PIL import Image

DEFAULT = "open_clip:ViT-B-16-quickgelu/openai"


class OpenClipEncoder:
    """A frozen open_clip model.

    Args:
        architecture: A name open_clip knows (``ViT-B-16-quickgelu``), or ``local-dir:FOLDER``.
        weights: A tag of pretrained weights (``openai``), a local checkpoint, or nothing for a folder that has its own.
        device: Device of the model.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        InputError: An unknown name or tag, weights that cannot be had or do not fit.

    Attributes:
        model: The model, in eval mode, without gradients.
        tokenizer: Texts to tokens.
        name: For people.
        fingerprint: Digest of weights, preprocessing and tokenizer.
        dim: Width of the features.
    """

    def __init__(
        self, architecture: str, weights: str | None = None, *, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        import open_clip

        self.name = architecture if weights is None else f"{architecture}/{Path(weights).name}"
        local = architecture.startswith("local-dir:") or (weights is not None and Path(weights).exists())
        if not architecture.startswith("local-dir:") and architecture not in open_clip.list_models():
            raise InputError(
                "open_clip knows no such model",
                where="--encoder",
                why=f"got {architecture}",
                remedy="python -c 'import open_clip; print(open_clip.list_models())' lists them",
            )
        try:
            with warnings.catch_warnings():
                # With the plain name, OpenAI's weights give wrong features and open_clip only warns.
                warnings.filterwarnings("error", message=".*QuickGELU.*")
                model, _, preprocess = open_clip.create_model_and_transforms(
                    architecture, pretrained=weights, device=device, precision="fp32", load_weights=True
                )
                tokenizer = open_clip.get_tokenizer(architecture)
        except UserWarning as error:
            raise InputError(
                "the weights were trained with another activation than the model's",
                where="--encoder",
                why=str(error),
                remedy=f"use open_clip:{architecture}-quickgelu/{weights}",
            ) from error
        except Exception as error:  # open_clip, the hub's client and torch fail in many ways
            raise _unloadable(self.name, error, local=local) from error
        self.model = model.eval().requires_grad_(False).to(getattr(torch, dtype))
        self.tokenizer: Any = tokenizer
        self._preprocess, self._device, self._dtype = preprocess, device, getattr(torch, dtype)
        self.dim = int(self.encode_texts(["a"]).shape[1])
        self.fingerprint = f"open_clip-{_digest(model, preprocess, tokenizer, dtype)}"

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        """Unit features of RGB images."""
        pixels = torch.stack([self._preprocess(image) for image in images]).to(self._device, self._dtype)
        features: torch.Tensor = self.model.encode_image(pixels)
        return _unit(features)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit features of texts; beyond the context length texts are cut, as open_clip does."""
        features: torch.Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self._device))
        return _unit(features)


def _unit(features: torch.Tensor) -> Float[np.ndarray, "n d"]:
    rows: np.ndarray = torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()
    return rows


def _digest(model: Any, preprocess: Any, tokenizer: Any, dtype: str) -> str:
    digest = hashlib.sha256(f"{preprocess!r}{type(tokenizer).__name__}{dtype}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _unloadable(name: str, error: Exception, *, local: bool) -> InputError:
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if local:
        return InputError(
            "the weights cannot be loaded into the model",
            where=f"--encoder {name}",
            why=why,
            remedy="check that the file is a checkpoint of that architecture (safetensors, or a state dict)",
        )
    return InputError(
        "the weights of the encoder cannot be had",
        where=f"--encoder {name}",
        why=why,
        remedy="offline, download the weights elsewhere and pass --encoder open_clip:ARCHITECTURE/path/to/weights, or "
        "a folder as open_clip saves it, --encoder local-dir:FOLDER; or pass features instead of images",
    )
