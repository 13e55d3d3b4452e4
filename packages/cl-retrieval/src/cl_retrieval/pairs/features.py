"""Features of image-text pairs, and the files they are kept in.

Our own file is an ``.npz`` that :func:`write_features` writes. Read are also the layouts features are published in:
``.npz``, ``.mat`` (version 5 and 7.3) and ``.h5`` with one array a modality under the usual names, and folders of
``image.npy`` and ``text.npy``.
"""

import dataclasses
import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import atomic_write
from jaxtyping import Bool, Float, Int, UInt8

SUFFIXES = (".npz", ".npy", ".mat", ".h5", ".hdf5")
PRECOMPUTED = "precomputed"

# Names of the arrays in published files, in the order they are looked for: UCCH and DCMH (IAll, XAll, YAll, LAll),
# Wikipedia's raw_features.mat (I_tr, T_tr, ...), and plain ones.
_IMAGE = ("image", "images", "img", "image_features", "XAll", "IAll", "I")
_TEXT = ("text", "texts", "txt", "text_features", "YAll", "T")
_LABELS = ("labels", "label", "LAll", "L")
_IDS = ("ids", "id")
_PARTS = (("I_tr", "I_te"), ("T_tr", "T_te"), ("L_tr", "L_te"))


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
    unit = {name: _unit_rows(features.of(name), name, where) for name in ("image", "text")}
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


def check_shapes(
    ids: Sequence[str], image: np.ndarray, text: np.ndarray, labels: np.ndarray | None, where: object
) -> None:
    """Refuse rows that do not pair.

    Raises:
        InputError: No pairs, different numbers of rows, or different widths.
    """
    n = len(ids)
    if n == 0 or len(image) == 0:
        raise InputError("there are no pairs", where=where, remedy="give at least one image with a text")
    if len(image) != len(text) or len(image) != n:
        raise InputError(
            "images and texts do not pair",
            where=where,
            why=f"{n} ids, {len(image)} images, {len(text)} texts",
            remedy="give one row of each a pair",
        )
    if image.shape[1] != text.shape[1]:
        raise InputError(
            "image and text features have different widths",
            where=where,
            why=f"{image.shape[1]} and {text.shape[1]}",
            remedy="use features of one encoder with a joint space, such as CLIP",
        )
    if labels is not None and len(labels) != n:
        raise InputError("labels do not fit the pairs", where=where, why=f"{len(labels)} rows for {n} pairs")


def check_ids(ids: Sequence[str], where: object) -> None:
    """Refuse ids that occur twice or could name a file outside a folder.

    Raises:
        InputError: Such an id.
    """
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InputError("an id occurs twice", where=where, why=f"id {each!r}", remedy="give every pair its own id")
        seen.add(each)
        parts = PurePosixPath(each).parts
        if not each or "\0" in each or "\\" in each or each.startswith("/") or ".." in parts:
            raise InputError(
                "an id is not usable as a name",
                where=where,
                why=f"id {each!r}",
                remedy="use relative names without '..' and backslashes",
            )


def check_width(features: Float[np.ndarray, "n d"], dim: int, where: object) -> None:
    """Refuse features of another width than a model's.

    Raises:
        InputError: They are.
    """
    if features.shape[1] != dim:
        raise InputError(
            "the features have another width than the model's",
            where=where,
            why=f"{features.shape[1]} values a row, the model takes {dim}",
            remedy="use features of the encoder the model was trained with",
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
    meta = {"encoder": features.encoder, "fingerprint": features.fingerprint, "source": features.source}
    arrays: dict[str, Any] = {
        "ids": np.array(features.ids),
        "image": features.image.astype(np.float32),
        "text": features.text.astype(np.float32),
        "meta": np.array(json.dumps(meta)),
    }
    if features.labels is not None:
        arrays |= {"labels": features.labels, "classes": np.array(features.classes)}
    for name, values in (("texts", features.texts), ("images", features.images), ("contents", contents)):
        if values:
            arrays[name] = np.array(list(values))
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
    image, text = (
        _find(arrays, names, part, path, what)
        for names, part, what in ((_IMAGE, _PARTS[0], "image"), (_TEXT, _PARTS[1], "text"))
    )
    labels = _optional(arrays, _LABELS, _PARTS[2])
    onehot, classes = (None, ()) if labels is None else one_hot(labels)
    if "classes" in arrays and onehot is not None and len(arrays["classes"]) == onehot.shape[1]:
        classes = tuple(str(each) for each in arrays["classes"])
    named = _optional(arrays, _IDS, ("", ""))
    ids = (
        tuple(f"{i:06d}" for i in range(len(image))) if named is None else tuple(str(each) for each in np.ravel(named))
    )
    check_shapes(ids, image, text, onehot, path)
    meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
    found = PairFeatures(
        ids=ids,
        image=image,
        text=text,
        labels=onehot,
        classes=classes,
        texts=tuple(str(each) for each in arrays.get("texts", ())),
        images=tuple(str(each) for each in arrays.get("images", ())),
        encoder=str(meta.get("encoder", PRECOMPUTED)),
        fingerprint=str(meta.get("fingerprint", "")),
        source=str(meta.get("source", "")),
    )
    return check_features(found, path, normalise=normalise)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file or folder, by name; nothing in it is executed.

    Raises:
        InputError: The file is missing, of an unknown kind, or damaged.
    """
    if path.is_dir():
        names = {each.stem: each for each in sorted(path.glob("*.npy"))}
        if not names:
            raise InputError("the folder holds no features", where=path, why="there is no .npy file in it")
        return {name: _guarded(each, _npy) for name, each in names.items()}
    if not path.is_file():
        raise InputError("the file is missing", where=path, remedy="check the path")
    if path.suffix == ".npy":
        return read_arrays(path.parent)
    readers = {".npz": _npz, ".mat": _mat, ".h5": _hdf5, ".hdf5": _hdf5}
    if path.suffix not in readers:
        raise InputError(
            "the file is of no known kind",
            where=path,
            remedy=f"one of {', '.join(SUFFIXES)}, or a folder of .npy files",
        )
    return _guarded(path, readers[path.suffix])


def is_features(path: Path) -> bool:
    """Whether a path names features rather than raw pairs."""
    return path.suffix in SUFFIXES or (path.is_dir() and (path / "image.npy").is_file())


def one_hot(labels: np.ndarray) -> tuple[UInt8[np.ndarray, "n c"], tuple[str, ...]]:
    """Labels as zeros and ones, one column a class.

    Args:
        labels: ``[n]`` or ``[n 1]`` of names or numbers, one class each; or ``[n c]`` of zeros and ones.
    """
    if labels.ndim == 2 and labels.shape[1] > 1:
        return (labels > 0).astype(np.uint8), tuple(str(i) for i in range(labels.shape[1]))
    values, places = np.unique(labels.ravel(), return_inverse=True)
    out = np.zeros((len(places), len(values)), np.uint8)
    out[np.arange(len(places)), places] = 1
    return out, tuple(str(each) for each in values)


def digest_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, their types and shapes."""
    found = hashlib.sha256()
    for each in arrays:
        found.update(f"{each.dtype}{each.shape}".encode() + np.ascontiguousarray(each).tobytes())
    return found.hexdigest()


def _guarded(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, TypeError) as error:
        raise InputError(
            "the features cannot be read",
            where=path,
            why=" ".join(str(error).split())[:200] or type(error).__name__,
            remedy="restore the file; arrays of Python objects are not read, as that would run code from the file",
        ) from error


def _npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _mat(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head:
        # MATLAB stores columns first, HDF5 rows first: every array comes out transposed.
        return {name: value.T for name, value in _hdf5(path).items()}
    from scipy.io import loadmat

    values: dict[str, np.ndarray] = loadmat(path, chars_as_strings=True)
    return {name: value for name, value in values.items() if not name.startswith("__")}


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path, "r") as file:
        found = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    return {name: _decoded(value) for name, value in found.items()}


def _decoded(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "OS":  # texts, as HDF5 keeps them
        return np.array([each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel()])
    return array


def _find(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], parts: tuple[str, str], path: Path, what: str
) -> np.ndarray:
    found = _optional(arrays, names, parts)
    if found is None:
        raise InputError(
            f"the file holds no {what} features",
            where=path,
            why=f"its arrays are {', '.join(sorted(arrays)) or 'none'}",
            remedy=f"name the array {names[0]}",
        )
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise InputError(
            f"the {what} features are no matrix of numbers",
            where=path,
            why=f"{found.dtype} of shape {found.shape}",
            remedy="give one row of features a pair; raw pixels go through encode-features",
        )
    return np.ascontiguousarray(found, np.float32)


def _optional(arrays: Mapping[str, np.ndarray], names: Sequence[str], parts: tuple[str, str]) -> np.ndarray | None:
    for name in names:
        if name in arrays:
            return np.asarray(arrays[name])
    if all(part in arrays for part in parts):
        return np.concatenate([arrays[part] for part in parts])
    return None


def _unit_rows(rows: np.ndarray, name: str, where: object) -> Bool[np.ndarray, " n"]:
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise InputError(
            f"{name} features are not finite",
            where=where,
            why=f"for instance row {int(np.argmin(finite))}",
            remedy="leave out the pair, or compute its features again",
        )
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    if (norms == 0).any():
        raise InputError(
            f"{name} features are zero",
            where=where,
            why=f"for instance row {int(np.argmin(norms))}",
            remedy="leave out the pair, or compute its features again",
        )
    return np.abs(norms - 1) < 1e-2


def _normalised(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
