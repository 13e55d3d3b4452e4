"""Features of image-text pairs, and the files they are kept in.

Our own file is an ``.npz`` that :func:`write_features` writes. Read are also the layouts features are published in:
``.npz``, ``.mat`` (version 5 and 7.3) and ``.h5`` with one array a modality under the usual names, and folders of
``image.npy`` and ``text.npy``.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import atomic_write, reading
from jaxtyping import Bool, Float, Int, UInt8

from cl_retrieval.pairs.arrays import SUFFIXES, packed_texts, read_arrays, texts_of
from cl_retrieval.pairs.checks import check_ids, check_shapes, one_hot, unit_rows

PRECOMPUTED = "precomputed"

# Names of the arrays in published files, in the order they are looked for: UCCH and DCMH (IAll, XAll, YAll, LAll),
# Wikipedia's raw_features.mat (I_tr, T_tr, ...), and plain ones.
_IMAGE = ("image", "images", "img", "image_features", "XAll", "IAll", "I")
_TEXT = ("text", "texts", "txt", "text_features", "YAll", "T")
_LABELS = ("labels", "label", "LAll", "L")
_IDS = ("ids", "id")
_PARTS = (("I_tr", "I_te"), ("T_tr", "T_te"), ("L_tr", "L_te"))
_OWN = ("classes", "meta", "contents")
_DIVISION = re.compile(r"train|valid|\bval|test|quer|split|retrieval|database|fold", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What features were made with.

    Attributes:
        encoder: Name of the encoder, ``precomputed`` where it is not known.
        fingerprint: Digest of the encoder and its preprocessing; for features of unknown origin, of their width.
        source: How that encoder is loaded, as ``--encoder`` takes it; empty where that is not known.
    """

    encoder: str = PRECOMPUTED
    fingerprint: str = ""
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether the encoder is known."""
        return bool(self.fingerprint) and not self.fingerprint.startswith(PRECOMPUTED)


@dataclasses.dataclass(frozen=True)
class PairFeatures:
    """Features of pairs, row by row.

    Attributes:
        ids: One a pair, all different, usable as file names.
        image: Unit rows of the images.
        text: Unit rows of the texts, of the same width.
        labels: Zeros and ones, one column a class; none where there are no labels.
        classes: Names of the columns.
        texts: The texts themselves, where they are known.
        images: Image files, where they are known.
        encoder: Name of the encoder, ``precomputed`` where the file does not tell.
        fingerprint: Digest of the encoder and its preprocessing; for features of unknown origin, of their width.
        source: How that encoder is loaded, as ``--encoder`` takes it; empty where that is not known.
    """

    ids: tuple[str, ...]
    image: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    labels: UInt8[np.ndarray, "n c"] | None = None
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    encoder: str = PRECOMPUTED
    fingerprint: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_arrays(
        cls,
        image: Float[np.ndarray, "n d"],
        text: Float[np.ndarray, "n d"],
        labels: np.ndarray | None = None,
        ids: Sequence[str] | None = None,
        origin: Origin = Origin(),
    ) -> "PairFeatures":
        """Pairs of arrays; rows are brought to unit length.

        Args:
            image: Features of the images.
            text: Features of their texts, row by row.
            labels: One class a pair, or zeros and ones ``[n c]``.
            ids: One a pair; numbers by default.
            origin: What the features were made with.

        Raises:
            InputError: As :func:`check_features`.
        """
        onehot, classes = (None, ()) if labels is None else one_hot(labels)
        names = tuple(f"{i:06d}" for i in range(len(image))) if ids is None else tuple(ids)
        x, y = (np.ascontiguousarray(each, np.float32) for each in (image, text))
        check_shapes(names, x, y, onehot, "the arrays")
        pairs = cls(names, x, y, onehot, classes, **dataclasses.asdict(origin))
        return check_features(pairs, "the arrays", normalise=True)

    @property
    def origin(self) -> Origin:
        """What the features were made with."""
        return Origin(self.encoder, self.fingerprint, self.source)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.image.shape[1]

    def of(self, modality: str) -> Float[np.ndarray, "n d"]:
        """Features of one modality."""
        return self.image if modality == "image" else self.text

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "PairFeatures":
        """Some of the pairs."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in places),
            image=self.image[places],
            text=self.text[places],
            labels=None if self.labels is None else self.labels[places],
            texts=tuple(self.texts[i] for i in places) if self.texts else (),
            images=tuple(self.images[i] for i in places) if self.images else (),
        )

    def labelled(self, purpose: str) -> UInt8[np.ndarray, "n c"]:
        """The labels.

        Raises:
            InputError: There are none.
        """
        if self.labels is None:
            raise InputError(
                f"{purpose} needs labels", why="the pairs have none", remedy="add a labels column or array"
            )
        return self.labels


def check_features(features: PairFeatures, where: object, *, normalise: bool = False) -> PairFeatures:
    """Refuse features that cannot be used, and bring consistent ones to unit length.

    Args:
        features: As read.
        where: File they came from, for messages.
        normalise: Bring rows to unit length whatever they are.

    Returns:
        Features with unit rows in float32.

    Raises:
        InputError: Ids twice or unusable, values that are not finite, zero rows, or a mixture of unit and other rows.
    """
    check_ids(features.ids, where)
    unit = {name: unit_rows(features.of(name), name, where) for name in ("image", "text")}
    if (not normalise and len({bool(each.all()) for each in unit.values()}) > 1) or any(
        not normalise and each.any() and not each.all() for each in unit.values()
    ):
        shares = ", ".join(f"{100 * each.mean():.0f} % of the {name} rows" for name, each in unit.items())
        raise InputError(
            "normalised and raw features are mixed",
            where=where,
            why=f"unit length have {shares}",
            remedy="normalise none or all of them, or pass --normalise to bring every row to unit length",
        )
    if not normalise and not unit["image"].any():
        warnings.warn(f"{where}: features are brought to unit length", ContrastiveWarning, stacklevel=2)
    return dataclasses.replace(
        features,
        image=_normalised(features.image),
        text=_normalised(features.text),
        fingerprint=features.fingerprint or f"{PRECOMPUTED}-{features.image.shape[1]}",
    )


def write_features(path: Path, features: PairFeatures, contents: Sequence[str] = ()) -> None:
    """Write features to ``.npz``, atomically.

    Args:
        path: The file.
        features: What to write.
        contents: Hash of what each pair was computed from.

    Raises:
        InputError: The name does not end in ``.npz``.
    """
    if path.suffix != ".npz":
        raise InputError("features are written as .npz", where=path, remedy="end the name in .npz")
    arrays: dict[str, Any] = {
        **packed_texts("ids", features.ids),
        "image": features.image.astype(np.float32),
        "text": features.text.astype(np.float32),
        "meta": np.array(json.dumps(dataclasses.asdict(features.origin))),
    }
    if features.labels is not None:
        arrays |= {"labels": features.labels, **packed_texts("classes", features.classes)}
    for name, values in (("texts", features.texts), ("images", features.images), ("contents", contents)):
        if values:
            arrays |= packed_texts(name, values)
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_features(path: Path, *, normalise: bool = False) -> PairFeatures:
    """Read features of pairs from any supported file.

    Args:
        path: ``.npz``, ``.mat``, ``.h5``, a folder with ``image.npy`` and ``text.npy`` (``labels.npy``, ``ids.npy``),
            or one of these ``.npy`` files.
        normalise: Bring every row to unit length, whatever lengths are mixed.

    Raises:
        InputError: The file is missing, unreadable, lacks an array, or holds features that cannot be used.
    """
    arrays = read_arrays(path)
    # Beside features called text and image, these are the texts and files themselves.
    texts, images = (arrays.pop(n) if n in arrays and n[:-1] in arrays else () for n in ("texts", "images"))
    image, text = (
        _find(arrays, names, part, path, what)
        for names, part, what in ((_IMAGE, _PARTS[0], "image"), (_TEXT, _PARTS[1], "text"))
    )
    _check_names(arrays, path)
    labels, named = _optional(arrays, _LABELS, _PARTS[2]), _optional(arrays, _IDS, ("", ""))
    onehot, classes = (None, ()) if labels is None else one_hot(labels, path)
    if "classes" in arrays and onehot is not None:
        classes = texts_of(arrays["classes"], "classes", path)
        if len(classes) != onehot.shape[1] or len(set(classes)) != len(classes):
            raise InputError(
                "the names of the classes do not fit the labels",
                where=path,
                why=f"{len(classes)} names, {len(set(classes))} different ones, {onehot.shape[1]} columns",
            )
    ids = tuple(f"{i:06d}" for i in range(len(image))) if named is None else texts_of(named, "ids", path)
    check_shapes(ids, image, text, onehot, path)
    pairs = PairFeatures(
        ids,
        image,
        text,
        onehot,
        classes,
        texts=texts_of(texts, "texts", path),
        images=texts_of(images, "image files", path),
        **dataclasses.asdict(_origin(arrays, path)),
    )
    if any(each and len(each) != len(ids) for each in (pairs.texts, pairs.images)):
        raise InputError("texts or image files do not fit the pairs", where=path, remedy="restore the file")
    return check_features(pairs, path, normalise=normalise)


def is_features(path: Path) -> bool:
    """Whether a path names features rather than raw pairs."""
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and (path / "image.npy").is_file())


def _find(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], parts: tuple[str, str], path: Path, what: str
) -> np.ndarray:
    rows = _optional(arrays, names, parts)
    if rows is None:
        raise InputError(
            f"the file holds no {what} features",
            where=path,
            why=f"its arrays are {', '.join(sorted(arrays)) or 'none'}",
            remedy=f"name the array {names[0]}",
        )
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise InputError(
            f"the {what} features are no matrix of numbers",
            where=path,
            why=f"{rows.dtype} of shape {rows.shape}",
            remedy="give one row of features a pair; raw pixels go through prepare",
        )
    return np.ascontiguousarray(rows, np.float32)


def _optional(arrays: Mapping[str, np.ndarray], names: Sequence[str], parts: tuple[str, str]) -> np.ndarray | None:
    for name in names:
        if name in arrays:
            return np.asarray(arrays[name])
    if all(part in arrays for part in parts):
        return np.concatenate([arrays[part] for part in parts])
    return None


def _check_names(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuse arrays that divide the pairs, which nothing here would follow; name others that are not read."""
    known = {*_IMAGE, *_TEXT, *_LABELS, *_IDS, *_OWN, *(part for parts in _PARTS for part in parts)}
    others = sorted(set(arrays) - known)
    divides = [name for name in others if _DIVISION.search(name)]
    if divides:
        raise InputError(
            "the file divides the pairs itself, and that is not read",
            where=path,
            why=f"array {divides[0]!r}",
            remedy="remove it and set queries apart with --queries, or give one file a part",
        )
    if others:
        warnings.warn(f"{path}: not read: {', '.join(others[:8])}", ContrastiveWarning, stacklevel=3)


def _origin(arrays: Mapping[str, np.ndarray], path: Path) -> Origin:
    if "meta" not in arrays:
        return Origin()
    with reading(path, "the origin of the features cannot be read", "restore the file, or compute them again"):
        values = json.loads(str(arrays["meta"]))
        names = [values.get(field.name, field.default) for field in dataclasses.fields(Origin)]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names of encoders are texts")
        return Origin(*names)


def _normalised(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
