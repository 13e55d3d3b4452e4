"""Items of an index: of pairs, of features, or of a file of codes."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from contrastive_core.arrays import npz_names
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, reading
from contrastive_core.index import Items
from contrastive_core.index.interface import Modality

from cl_retrieval.hashing.data import FeatureOptions, features_for
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.pairs.arrays import packed_texts, read_arrays, texts_of
from cl_retrieval.pairs.features import PairFeatures

Sides = Literal["both", "image", "text"]


def items_of(
    hashes: HashEncoder, data: Path, *, options: FeatureOptions, sides: Sides = "both", keep_features: bool = True
) -> Items:
    """Items of pairs, of a feature file, or of a file of :func:`write_codes`.

    Args:
        hashes: Trained hash functions.
        data: Pairs, features or codes.
        options: Encoder.
        sides: Both sides of the pairs, or one.
        keep_features: Keep the features beside the codes, for re-ranking.

    Raises:
        InputError: Codes of another model, or data that cannot be read.
    """
    if data.suffix.lower() == ".npz" and "codes" in npz_names(data):
        return read_codes(hashes, data, keep_features=keep_features)
    features = features_for(hashes, data, options)
    modalities: tuple[Modality, ...] = ("image", "text") if sides == "both" else (sides,)
    return Items(
        ids=list(features.ids) * len(modalities),
        vectors=np.concatenate([hashes.encode(features.of(m), m) for m in modalities]),
        modality=[m for m in modalities for _ in range(len(features))],
        payloads=[_payload(features, row) for row in range(len(features))] * len(modalities),
        features=np.concatenate([features.of(m) for m in modalities]) if keep_features else None,
    )


def write_codes(path: Path, hashes: HashEncoder, items: Items) -> None:
    """Write codes as ``.npz``: ids, codes (first bit highest), modality, payloads, the model, and features.

    Raises:
        InputError: The name does not end in ``.npz``.
    """
    if path.suffix != ".npz":
        raise InputError("codes are written as .npz", where=path, remedy="end the name in .npz")
    arrays: dict[str, Any] = {
        **packed_texts("ids", items.ids),
        **packed_texts("modality", list(items.modality)),
        **packed_texts("payloads", [json.dumps(each, ensure_ascii=False) for each in items.payloads or ()]),
        "codes": items.vectors,
        "model": np.array(json.dumps(dataclasses.asdict(hashes.identity))),
    }
    if items.features is not None:
        arrays["features"] = items.features
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_codes(hashes: HashEncoder, path: Path, *, keep_features: bool = True) -> Items:
    """Read a file of :func:`write_codes`.

    Raises:
        InputError: It is damaged, or of another model.
    """
    arrays = read_arrays(path)
    with reading(path, "the codes cannot be read", "write them again with embed"):
        made = json.loads(str(arrays["model"]))
        ids, modality, payloads = (texts_of(arrays[name], name, path) for name in ("ids", "modality", "payloads"))
        codes, features = arrays["codes"], arrays.get("features")
        if codes.dtype != np.uint8 or not len(ids) == len(modality) == len(payloads) == len(codes):
            raise ValueError("its arrays do not fit together")
        items = Items(ids, codes, modality, [dict(json.loads(each)) for each in payloads])
        name, fingerprint = str(made["name"]), str(made["fingerprint"])
    if fingerprint != hashes.identity.fingerprint:
        raise InputError(
            "the codes were made by another model",
            where=path,
            why=f"{name} ({fingerprint}), the run holds {hashes.identity.name} ({hashes.identity.fingerprint})",
            remedy="embed the data with this run",
        )
    return dataclasses.replace(items, features=features) if keep_features else items


def _payload(features: PairFeatures, row: int) -> dict[str, str]:
    payload = {}
    if features.texts:
        payload["text"] = features.texts[row]
    if features.images:
        payload["image"] = features.images[row]
    return payload
