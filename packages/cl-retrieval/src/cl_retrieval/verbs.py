"""The verbs that both methods have: they take a run of either, and tell by its model which one it is."""

import dataclasses
import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, write_json, write_text
from contrastive_core.index import Hit, Items, build_index, open_index
from contrastive_core.index.interface import Modality
from contrastive_core.report import Report
from cyclopts import Parameter
from jaxtyping import Float

from cl_retrieval.encoders import load_encoder
from cl_retrieval.hasher import Hasher, default_encoder, query_features
from cl_retrieval.hashing.evaluation import COLUMNS, Conventions, evaluate_split, table_rows
from cl_retrieval.hashing.figures import add_evaluation
from cl_retrieval.hashing.split import Protocol, draw_split
from cl_retrieval.pairs.embedding import embed_to_file
from cl_retrieval.pairs.features import PairFeatures, check_ids, read_arrays, read_features
from cl_retrieval.pairs.raw import read_pairs
from cl_retrieval.pairs.samples import write_samples
from cl_retrieval.tasks import DataOptions, text_table

Sides = Literal["both", "image", "text"]
Find = Literal["image", "text", "either"]
Flat = Parameter(name="*")


def sample_data(out: Path, *, limit: int | None = None, overwrite: bool = False) -> None:
    """Write real drawings with names and subcategories, and an encoder of both that runs offline.

    Args:
        out: Folder to write.
        limit: Fewer pictures, evenly taken.
        overwrite: Replace a folder that is there.
    """
    print(write_samples(out, limit=limit, overwrite=overwrite))


def encode_features(
    data: Path,
    out: Path,
    *,
    encoder: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 64,
    overwrite: bool = False,
) -> None:
    """Compute the features of image-text pairs once; an interrupted call continues where it was.

    Args:
        data: Table (.jsonl, .csv, .tsv, .txt, COCO's .json), or a folder with one, or a published set.
        out: .npz to write.
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as `encoder`, else CLIP ViT-B/16.
        device: Device of the encoder.
        dtype: Its precision: float32, bfloat16, float16.
        batch_size: Images a pass.
        overwrite: Replace an existing file.
    """
    if out.exists() and not overwrite:
        raise InputError("the output exists already", where=out, remedy="name another file, or pass --overwrite")
    if batch_size < 1:
        raise InputError("the option is at least 1", where="--batch-size", why=f"got {batch_size}")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(
            "there is no such precision", where="--dtype", why=f"got {dtype}", remedy="float32, bfloat16 or float16"
        )
    pairs = read_pairs(data)
    source = default_encoder(data, encoder)
    features = embed_to_file(
        pairs, load_encoder(source, device=device, dtype=dtype), out, source=source, batch_size=batch_size
    )
    print(f"{len(features)} pairs of width {features.dim} by {features.encoder} in {out}")


def evaluate(
    run: Path,
    data: Path,
    *,
    source: DataOptions = DataOptions(),
    conventions: Annotated[Conventions, Flat] = Conventions(),
    queries: int | None = None,
    protocol: Protocol | None = None,
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Mean average precision, precision at k and curves of both directions, on labelled pairs.

    Args:
        run: Run folder of train.
        data: Labelled pairs or features; those of the training by default division.
        source: Encoder.
        conventions: Cut-off, denominator, empty queries, radius.
        queries: Set so many queries apart anew, instead of those of the run.
        protocol: Refuse a run of another protocol.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of a table.
        overwrite: Replace old results in that folder.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise InputError("the folder holds files already", where=out, remedy="name another, or pass --overwrite")
    hasher = Hasher.open(run)
    features = hasher.features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    split = hasher.split()
    if protocol is not None and protocol != split.protocol:
        raise InputError(
            "the model was trained under another protocol",
            where="--protocol",
            why=f"asked {protocol}, trained {split.protocol}",
            remedy="unseen classes must be unseen in training: train with that --protocol",
        )
    if queries is not None:
        if split.protocol != "standard":
            raise InputError("new queries are drawn under the protocol standard only", where="--queries")
        split = draw_split(features, queries=queries, pairs=None, seed=split.seed, trained_on=split.train)
    results = evaluate_split(hasher.model, features, split, where=data, conventions=conventions)
    if out is not None:
        report = Report(f"Evaluation of {run}")
        report.facts(
            {"model": hasher.identity.name, "data": f"{data} ({len(features)} pairs)", "protocol": split.protocol}
        )
        add_evaluation(report, hasher.model, features, split, results, where=data)
        write_json(out / "evaluation.json", results)
        report.write(out / "report.html")
    print(json_format.dumps(results, indent=2) if json else text_table(COLUMNS, table_rows(results)))


def encode(
    run: Path,
    data: Path,
    out: Path,
    *,
    source: DataOptions = DataOptions(),
    sides: Sides = "both",
    features: bool = True,
    overwrite: bool = False,
) -> None:
    """Pack images and texts into codes.

    Args:
        run: Run folder of train.
        data: Pairs or features.
        out: .npz to write: ids, codes (first bit highest), modality, payloads, and features.
        source: Encoder.
        sides: Encode both sides of the pairs, or one.
        features: Keep the features beside the codes, for re-ranking.
        overwrite: Replace an existing file.
    """
    if out.suffix != ".npz":
        raise InputError("codes are written as .npz", where=out, remedy="end the name in .npz")
    if out.exists() and not overwrite:
        raise InputError("the output exists already", where=out, remedy="name another file, or pass --overwrite")
    hasher = Hasher.open(run)
    items = items_of(hasher, data, source=source, sides=sides, keep_features=features)
    arrays: dict[str, Any] = {
        "ids": np.array(items.ids),
        "codes": items.codes,
        "modality": np.array(items.modality),
        "payloads": np.array([json_format.dumps(each, ensure_ascii=False) for each in items.payloads or ()]),
        "model": np.array(json_format.dumps(dataclasses.asdict(hasher.identity))),
    }
    if items.features is not None:
        arrays["features"] = items.features
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **arrays)
    print(f"{len(items.ids)} codes of {hasher.identity.bits} bits in {out}")


def index_build(
    run: Path,
    index: str,
    data: Path | None = None,
    *,
    source: DataOptions = DataOptions(),
    sides: Sides = "both",
    features: bool = True,
    overwrite: bool = False,
) -> None:
    """Build an index of codes.

    Args:
        run: Run folder of train.
        index: Folder of an embedded index, http://host:19530#collection of a Milvus server, or NAME.db of Milvus Lite.
        data: Pairs, features, or codes of encode; an empty index without.
        source: Encoder.
        sides: Index both sides of the pairs, or one.
        features: Keep features for re-ranking.
        overwrite: Replace an index that is there.
    """
    hasher = Hasher.open(run)
    if data is None:
        width = -(-hasher.identity.bits // 8)
        rows = np.empty((0, hasher.model.dim), np.float32) if features else None
        items = Items([], np.empty((0, width), np.uint8), [], [], rows)
    else:
        items = items_of(hasher, data, source=source, sides=sides, keep_features=features)
    with build_index(index, hasher.identity, items, overwrite=overwrite) as made:
        print(f"{made.info().size} items in {index}")


def index_add(run: Path, index: str, data: Path, *, source: DataOptions = DataOptions(), sides: Sides = "both") -> None:
    """Add pairs to an index.

    Args:
        run: Run folder the index was made with.
        index: Folder or URI.
        data: Pairs, features, or codes of encode.
        source: Encoder.
        sides: Add both sides of the pairs, or one.
    """
    hasher = Hasher.open(run)
    with open_index(index, hasher.identity) as opened:
        items = items_of(hasher, data, source=source, sides=sides, keep_features=opened.info().features > 0)
        opened.add(items)
        print(f"{len(items.ids)} items added, {opened.info().size} in {index}")


def index_delete(index: str, *, id: tuple[str, ...] = (), modality: Modality | None = None) -> None:
    """Delete items from an index.

    Args:
        index: Folder or URI.
        id: What to delete; may be given several times.
        modality: Delete only the image or the text of these ids.
    """
    ids = list(dict.fromkeys(id))
    if not ids:
        raise InputError("there is nothing to delete", where="--id", remedy="name at least one id")
    check_ids(ids, "--id")
    with open_index(index) as opened:
        count = opened.delete(ids, modality=modality)
        print(f"{count} items deleted, {opened.info().size} left in {index}")


def index_info(index: str, *, json: bool = False) -> None:
    """What an index holds.

    Args:
        index: Folder or URI.
        json: Print JSON.
    """
    with open_index(index) as opened:
        found = opened.info().to_dict()
    if json:
        print(json_format.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        print(f"{name:<10}{shown}")


def search(
    run: Path,
    index: str,
    *,
    text: tuple[str, ...] = (),
    image: tuple[Path, ...] = (),
    features: Path | None = None,
    asking: Modality = "text",
    find: Find = "image",
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    radius: int | None = None,
    rerank: int | None = None,
    source: DataOptions = DataOptions(),
    out: Path | None = None,
) -> None:
    """Search an index by text or image; one line of JSON a hit.

    Args:
        run: Run folder the index was made with.
        index: Folder or URI.
        text: Texts to search with; may be given several times.
        image: Image files to search with; may be given several times.
        features: Feature file to search with instead.
        asking: Which side of that file asks.
        find: Find images, texts, or either.
        k: Most hits a query.
        radius: Largest Hamming distance of a hit.
        rerank: Order so many nearest codes by the cosine of the features.
        source: Encoder.
        out: File for the hits, instead of printing them.
    """
    hasher = Hasher.open(run)
    if features is not None:
        rows = _query_rows(hasher, features, asking, normalise=source.normalise)
    else:
        rows = query_features(hasher, text=text, image=image, encoder=source.encoder, device=source.device)
    lines = []
    with open_index(index, hasher.identity) as opened:
        if opened.info().size == 0:
            raise InputError("the index is empty", where=index, remedy="add items with index add")
        for name, modality, row in rows:
            hits = opened.search(
                hasher.hash(row, modality),
                k=k,
                radius=radius,
                modality=None if find == "either" else find,
                features=row if rerank is not None else None,
                rerank=rerank,
            )[0]
            lines += [json_format.dumps({"query": name, **_hit(hit)}, ensure_ascii=False) for hit in hits]
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in lines))
        print(f"{len(lines)} hits of {len(rows)} queries in {out}")
    else:
        print("\n".join(lines))


def items_of(hasher: Hasher, data: Path, *, source: DataOptions, sides: Sides, keep_features: bool) -> Items:
    """Items of an index: from a file of ``encode``, a feature file, or pairs.

    Raises:
        InputError: Codes of another model, or data that cannot be read.
    """
    if data.suffix == ".npz" and data.is_file():
        arrays = read_arrays(data)
        if "codes" in arrays:
            return _read_codes(hasher, data, arrays, keep_features=keep_features)
    features = hasher.features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    modalities: tuple[Modality, ...] = ("image", "text") if sides == "both" else (sides,)
    payloads = [_payload(features, row) for row in range(len(features))]
    return Items(
        ids=list(features.ids) * len(modalities),
        codes=np.concatenate([hasher.hash(features.of(m), m) for m in modalities]),
        modality=[m for m in modalities for _ in range(len(features))],
        payloads=payloads * len(modalities),
        features=np.concatenate([features.of(m) for m in modalities]) if keep_features else None,
    )


def _read_codes(hasher: Hasher, path: Path, arrays: dict[str, np.ndarray], *, keep_features: bool) -> Items:
    try:
        made = json_format.loads(str(arrays["model"]))
        ids = [str(each) for each in arrays["ids"]]
        modality = [str(each) for each in arrays["modality"]]
        payloads = [json_format.loads(str(each)) for each in arrays["payloads"]]
        codes = np.asarray(arrays["codes"], np.uint8)
    except (KeyError, ValueError) as error:
        raise InputError(
            "the codes cannot be read", where=path, why=str(error), remedy="write them again with encode"
        ) from error
    if made["fingerprint"] != hasher.identity.fingerprint:
        raise InputError(
            "the codes were made by another model",
            where=path,
            why=f"{made['name']} ({made['fingerprint']}), "
            f"the run holds {hasher.identity.name} ({hasher.identity.fingerprint})",
            remedy="encode the data with this run",
        )
    features = arrays.get("features") if keep_features else None
    return Items(ids, codes, modality, payloads, features)  # type: ignore[arg-type]


def _payload(features: PairFeatures, row: int) -> dict[str, str]:
    found = {}
    if features.texts:
        found["text"] = features.texts[row]
    if features.images:
        found["image"] = features.images[row]
    return found


def _query_rows(
    hasher: Hasher, path: Path, asking: Modality, *, normalise: bool
) -> list[tuple[str, Modality, Float[np.ndarray, "1 d"]]]:
    found = read_features(path, normalise=normalise)
    hasher.check(found, path)
    return [(name, asking, found.of(asking)[row : row + 1]) for row, name in enumerate(found.ids)]


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "modality": hit.modality,
        "hamming": hit.distance,
        "score": None if hit.score is None else round(hit.score, 6),
        **hit.payload,
    }
