"""From a bank of attributes to kernel centres, and what can be wrong with a bank."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from contrastive_core.devices import pick_device
from contrastive_core.errors import ContrastiveWarning, InputError
from jaxtyping import Float
from torch import nn

from cl_retrieval.apkh.attributes import Bank, label_overlap
from cl_retrieval.apkh.objective import attribute_kernel, effective_number, variance_for_effective_number
from cl_retrieval.apkh.prompts import PromptOptions, ResidualCentres, context_centres, mean_cosine
from cl_retrieval.encoders import load_encoder
from cl_retrieval.hashing.data import FeatureOptions, default_encoder, training_features
from cl_retrieval.pairs.arrays import read_arrays
from cl_retrieval.pairs.checks import check_width, unit_rows
from cl_retrieval.pairs.features import PairFeatures


def first_centres(bank: Bank, features: PairFeatures, options: PromptOptions, *, device: str) -> nn.Module:
    """The module that gives the kernel centres, from the encoder of the features or from features of the attributes.

    Args:
        bank: Attributes.
        features: Features the kernels are for.
        options: Prompt mode, and features of the attributes where there is no encoder.
        device: Device of the encoder.

    Raises:
        InputError: The encoder is not known or another one, or the attributes' features do not fit.
    """
    if options.attribute_features is not None:
        if options.prompt_mode == "context":
            raise InputError(
                "learnt context needs an encoder", where="--attribute-features", remedy="use --prompt-mode residual"
            )
        rows = _attribute_rows(options.attribute_features, bank, features.dim)
        return ResidualCentres(torch.from_numpy(rows), learn=options.prompt_mode == "residual")
    if not features.source:
        raise InputError(
            "the attributes are texts, and the encoder of the features is not known",
            where="--encoder",
            remedy="name the encoder the features were made with, or give --attribute-features",
        )
    encoder = load_encoder(features.source, device=pick_device(device))
    check_width(features.image, encoder.dim, features.source)
    if features.origin.known and encoder.fingerprint != features.fingerprint:
        raise InputError(
            "the encoder is another one than that of the features",
            where=features.source,
            why=f"it is {encoder.name} ({encoder.fingerprint}), "
            f"the features are of {features.encoder} ({features.fingerprint})",
            remedy="name the encoder the features were made with",
        )
    prompts = bank.prompts()
    check_lengths(bank, encoder)
    if options.prompt_mode == "context":
        return context_centres(encoder, prompts, context=options.context)
    return ResidualCentres(torch.from_numpy(encoder.encode_texts(prompts)), learn=options.prompt_mode == "residual")


def check_lengths(bank: Bank, encoder: Any) -> list[int]:
    """Tokens of each prompt, start and end included; empty for encoders without open_clip's tokenizer.

    Raises:
        InputError: A prompt fills the context, so its end may have been cut off.
    """
    tokenizer = getattr(encoder, "tokenizer", None)
    if tokenizer is None:
        return []
    tokens = tokenizer(bank.prompts())
    lengths = (tokens != 0).sum(1).tolist()
    for phrase, length in zip(bank.phrases, lengths, strict=True):
        if length >= tokens.shape[1]:
            raise InputError(
                "an attribute is too long for the text tower",
                where=bank.source,
                why=f"{phrase[:60]!r} has {length} tokens or more, {tokens.shape[1]} fit",
                remedy="shorten the phrase",
            )
    return lengths


def report_overlap(bank: Bank, features: PairFeatures, *, strict: bool) -> tuple[str, ...]:
    """Attributes that name classes of the data: they leak what an evaluation of unseen classes asks for.

    Raises:
        InputError: There are some, and ``strict``.
    """
    shared = label_overlap(bank, features.classes)
    if shared and strict:
        raise InputError(
            "attributes name classes of the evaluation",
            where=bank.source,
            why=", ".join(shared),
            remedy="remove them from the bank, or do without --strict-zero-shot",
        )
    return shared


def check_bank(
    bank: Bank, data: Path | None, *, variance: float | Literal["auto"], options: FeatureOptions
) -> dict[str, Any]:
    """What is to be known of a bank: its size, names of classes among it, lengths, and what an image excites.

    Args:
        bank: The bank.
        data: Pairs or features whose labels must not be attributes, and whose images excite them.
        variance: Width of the kernels.
        options: Encoder; that of the data by default.
    """
    checked: dict[str, Any] = {"attributes": len(bank.phrases), "source": bank.source}
    source, features = options.encoder, None
    if data is not None:
        features = training_features(data, options)
        checked["names_of_classes"] = list(label_overlap(bank, features.classes))
        source = source or features.source or default_encoder(data, None)
    if source is None:
        return checked
    encoder = options.load(source)
    lengths = check_lengths(bank, encoder)
    if lengths:
        checked["longest_prompt_tokens"] = max(lengths)
    centres = torch.from_numpy(encoder.encode_texts(bank.prompts()))
    checked["mean_cosine"] = mean_cosine(centres)
    if features is not None:
        check_width(features.image, encoder.dim, data)
        checked |= _excitation(torch.from_numpy(features.image[:1000]), centres, variance)
    return checked


def _excitation(
    image: Float[torch.Tensor, "n d"], centres: Float[torch.Tensor, "m d"], variance: float | Literal["auto"]
) -> dict[str, float]:
    """Width of the kernels, and how many attributes a median image excites."""
    width = variance_for_effective_number(image, centres) if variance == "auto" else variance
    number = float(effective_number(attribute_kernel(image, centres, width)).median())
    if not 0.02 * len(centres) <= number <= 0.9 * len(centres):
        warnings.warn(
            f"a median image excites {number:.1f} of {len(centres)} attributes; try --variance auto",
            ContrastiveWarning,
            stacklevel=3,
        )
    return {"variance": width, "effective_number": number}


def _attribute_rows(path: Path, bank: Bank, dim: int) -> Float[np.ndarray, "m d"]:
    rows = read_arrays(path).get(path.stem) if path.suffix == ".npy" else None
    if rows is None or rows.ndim != 2 or len(rows) != len(bank.phrases) or not np.isfinite(rows).all():
        shape = None if rows is None else rows.shape
        raise InputError(
            "the features do not fit the attributes",
            where=path,
            why=f"shape {shape} for {len(bank.phrases)} attributes",
            remedy="give a .npy with one finite row a phrase",
        )
    check_width(rows, dim, path)
    unit_rows(rows, "attribute", path)
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
