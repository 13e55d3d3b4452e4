"""The folders that MIRFlickr, NUS-WIDE, Wikipedia and Pascal Sentence are published as."""

import re
import warnings
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.files import reading

from cl_retrieval.pairs.rows import IMAGES, RawPairs, inside, joined_pairs

RARE_TAG = 20
NUS_CONCEPTS = 10


def read_published(folder: Path) -> RawPairs:
    """Recognise a published set by its files, and read it.

    Raises:
        InputError: No set is recognised, or one is incomplete.
    """
    if (folder / "meta" / "tags").is_dir():
        return read_mirflickr(folder)
    if (folder / "texts").is_dir() and (folder / "trainset_txt_img_cat.list").is_file():
        return read_wikipedia(folder)
    if (folder / "sentence").is_dir():
        return read_pascal(folder)
    if any(folder.rglob("All_Tags.txt")):
        return read_nus_wide(folder)
    raise InputError(
        "the folder holds no pairs",
        where=folder,
        why="there is neither a table nor a published set in it",
        remedy="put pairs.jsonl, pairs.csv, captions.txt or captions.json beside the images; or lay MIRFlickr, "
        "NUS-WIDE, Wikipedia or Pascal Sentence out as published",
    )


def read_mirflickr(folder: Path, *, rare: int = RARE_TAG) -> RawPairs:
    """MIRFLICKR-25000: ``im1.jpg``, ``meta/tags/tags1.txt``, ``annotations/*.txt`` of image numbers.

    Tags are joined with commas. Left out are tags that occur fewer than ``rare`` times, and images that then have no
    tag, or no label (20,015 of 25,000 remain in the whole set).

    Args:
        folder: The unpacked archive, with the annotations in ``annotations``.
        rare: Fewest occurrences of a tag.
    """
    numbers = sorted(int(match[1]) for path in folder.glob("im*.jpg") if (match := re.fullmatch(r"im(\d+)", path.stem)))
    tags = {n: _lines(folder / "meta" / "tags" / f"tags{n}.txt") for n in numbers}
    counts = Counter(tag for each in tags.values() for tag in set(each))
    kept = {n: [tag for tag in each if counts[tag] >= rare] for n, each in tags.items()}
    labels: dict[int, list[str]] = {n: [] for n in numbers}
    # ``_r1`` files hold the images where a concept is especially relevant: they are no concepts of their own.
    for path in sorted((folder / "annotations").glob("*.txt")):
        if path.stem.endswith("_r1") or path.stem.lower() == "readme":
            continue
        for number, line in enumerate(_lines(path), 1):
            if not line.isdecimal():
                raise InputError("a line is no number of an image", where=f"{path}, line {number}", why=f"got {line!r}")
            if int(line) in labels:
                labels[int(line)].append(path.stem)
    has_labels = any(labels.values())
    used = [n for n in numbers if kept[n] and (labels[n] or not has_labels)]
    _name_rest(folder, len(used), len(numbers), f"the others have no tag that occurs {rare} times, or no label")
    return joined_pairs(
        [f"im{n}" for n in used],
        [folder / f"im{n}.jpg" for n in used],
        [(", ".join(kept[n]),) for n in used],
        [tuple(labels[n]) for n in used],
        folder,
        folder,
    )


def read_nus_wide(folder: Path, *, concepts: int = NUS_CONCEPTS) -> RawPairs:
    """NUS-WIDE: ``ImageList/Imagelist.txt``, ``All_Tags.txt``, ``AllLabels/Labels_*.txt``, and images in ``Flickr``.

    Kept are the images of the most frequent concepts that have tags and are there (many are no longer online).

    Args:
        folder: The unpacked lists, with the images.
        concepts: Most frequent concepts that are kept; 10 in the literature on hashing.
    """
    list_path, tag_path = _one(folder, "Imagelist.txt"), _one(folder, "All_Tags.txt")
    names = [line.replace("\\", "/") for line in _lines(list_path)]
    # ``number tag tag ...``, one image a line; the number is the part of the file name behind the underscore.
    tags = {parts[0]: parts[1:] for line in _lines(tag_path) if (parts := line.split())}
    columns = {}
    for path in sorted(_one(folder, "AllLabels").glob("Labels_*.txt")):
        column = _lines(path)
        if len(column) != len(names):
            raise InputError(
                "labels do not fit the image list", where=path, why=f"{len(column)} lines for {len(names)} images"
            )
        if not set(column) <= {"0", "1"}:
            raise InputError(
                "labels are zeros and ones", where=path, why=f"got {sorted(set(column) - {'0', '1'})[0]!r}"
            )
        columns[path.stem.removeprefix("Labels_")] = [value == "1" for value in column]
    frequent = sorted(columns, key=lambda name: -sum(columns[name]))[:concepts]
    root = next((each for each in (folder / "Flickr", folder / "images", folder) if each.is_dir()), folder)
    ids, images, texts, labels = [], [], [], []
    for row, name in enumerate(names):
        own = tuple(concept for concept in frequent if columns[concept][row])
        number = Path(name).stem.rpartition("_")[2]
        path = inside(root, name, list_path)
        if own and tags.get(number) and path.is_file():
            ids.append(name)
            images.append(path)
            texts.append((", ".join(tags[number]),))
            labels.append(own)
    _name_rest(folder, len(ids), len(names), f"the others are not of the {concepts} concepts, untagged or not there")
    return joined_pairs(ids, images, texts, labels, folder, folder)


def read_wikipedia(folder: Path) -> RawPairs:
    """Wikipedia: ``images/<class>/*.jpg``, ``texts/*.xml``, ``trainset_txt_img_cat.list`` and ``testset_...``.

    Lines of the lists are ``text id, image id, class number``, separated by tabs; ``categories.list`` names them.
    """
    names = _lines(folder / "categories.list") if (folder / "categories.list").is_file() else []
    pictures = {path.stem: path for path in sorted((folder / "images").rglob("*")) if path.suffix.lower() in IMAGES}
    ids, images, texts, labels = [], [], [], []
    for part in ("trainset_txt_img_cat.list", "testset_txt_img_cat.list"):
        path = folder / part
        for number, line in enumerate(_lines(path), 1):
            fields = line.split("\t")
            if len(fields) != 3 or not fields[2].isdecimal() or (names and not 0 < int(fields[2]) <= len(names)):
                raise InputError(
                    "a line is not text, image and class", where=f"{path}, line {number}", why=f"got {line!r}"
                )
            text, image, kind = fields
            ids.append(f"{text}")
            images.append(pictures.get(image, folder / "images" / f"{Path(image).name}.jpg"))
            texts.append((_article(inside(folder / "texts", f"{text}.xml", path)),))
            labels.append((names[int(kind) - 1] if names else kind,))
    return joined_pairs(ids, images, texts, labels, folder, folder)


def read_pascal(folder: Path) -> RawPairs:
    """Pascal Sentence: ``<class>/<id>.jpg`` (or below ``dataset``), five sentences in ``sentence/<class>/<id>.txt``."""
    pictures = folder / "dataset" if (folder / "dataset").is_dir() else folder
    ids, images, texts, labels = [], [], [], []
    for kind in sorted(path for path in (folder / "sentence").iterdir() if path.is_dir()):
        for path in sorted(kind.glob("*.txt")):
            ids.append(f"{kind.name}/{path.stem}")
            images.append(pictures / kind.name / f"{path.stem}.jpg")
            texts.append(tuple(_lines(path)))
            labels.append((kind.name,))
    return joined_pairs(ids, images, texts, labels, folder, folder)


def _article(path: Path) -> str:
    """Text of an article. Files that define entities are refused: they can grow without bound."""
    with reading(path, "an article cannot be read", "restore the file, or leave out its pair"):
        raw = path.read_bytes()
        if b"<!ENTITY" in raw or b"<!DOCTYPE" in raw or b"\0" in raw:
            raise InputError("an article defines entities", where=path, remedy="remove its document type")
        return " ".join(" ".join(ElementTree.fromstring(raw).itertext()).split())


def _lines(path: Path) -> list[str]:
    """Lines that are not empty; in Latin-1 where a set from before UTF-8 has it, with a note."""
    with reading(path, "a file of the set cannot be read", "unpack the whole set"):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
        warnings.warn(f"{path}: not UTF-8, read as Latin-1", ContrastiveWarning, stacklevel=2)
    return [line.strip() for line in text.split("\n") if line.strip()]


def _name_rest(folder: Path, used: int, count: int, why: str) -> None:
    if used < count:
        warnings.warn(f"{folder}: {used} of {count} pairs are used; {why}", ContrastiveWarning, stacklevel=3)


def _one(folder: Path, name: str) -> Path:
    paths = sorted(folder.rglob(name))
    if not paths:
        raise InputError("a file of the set is missing", where=folder / name, remedy="unpack the whole set")
    return paths[0]
