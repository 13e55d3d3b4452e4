"""The verbs that both methods have, behind thin commands of each: one implementation a verb."""

import dataclasses
import itertools
import json as json_format
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, write_json, write_text
from contrastive_core.report import Report
from contrastive_core.training.run_folder import RunFolder
from cyclopts import Parameter
from jaxtyping import Float

from cl_retrieval.encoders import load_encoder
from cl_retrieval.hasher import Hasher, default_encoder, query_features
from cl_retrieval.hashing.evaluation import COLUMNS, Conventions, evaluate_split, pair_recall, table_rows
from cl_retrieval.hashing.figures import add_evaluation
from cl_retrieval.hashing.learning import HashModel
from cl_retrieval.hashing.split import Protocol, Split, draw_split, places
from cl_retrieval.index import Hit, Items, build_index, open_index
from cl_retrieval.index.interface import Modality
from cl_retrieval.pairs.embedding import embed_to_file
from cl_retrieval.pairs.features import PairFeatures, check_ids, read_arrays, read_features
from cl_retrieval.pairs.raw import read_pairs
from cl_retrieval.pairs.samples import write_samples

Sides = Literal["both", "image", "text"]
Find = Literal["image", "text", "either"]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where features come from.

    Attributes:
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as ``encoder``, else CLIP ViT-B/16. Not needed for feature files.
        device: Device of the encoder.
        normalise: Bring every row of a feature file to unit length, also where normalised and raw rows are mixed.
    """

    encoder: str | None = None
    device: str = "cpu"
    normalise: bool = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """What trains and what is asked.

    Attributes:
        pairs: Training pairs; 80 by default, or all where there are fewer.
        queries: Pairs set apart as queries; a quarter of labelled pairs by default (at most 2,000), of others none.
        protocol: ``standard``, or ``seen-unseen``: training pairs of half of the classes, queries of both halves.
        split_seed: Seed of queries and training pairs.
        class_seed: Seed of the division of classes.
    """

    pairs: int | None = None
    queries: int | None = None
    protocol: Protocol = "standard"
    split_seed: int = 42
    class_seed: int = 0


# --- data -------------------------------------------------------------------------------------------------------------


def sample_data(out: Path, *, limit: int | None, overwrite: bool) -> None:
    """See the commands."""
    print(write_samples(out, limit=limit, overwrite=overwrite))


def encode_features(
    data: Path, out: Path, *, encoder: str | None, device: str, dtype: str, batch_size: int, overwrite: bool
) -> None:
    """See the commands."""
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


def split_of(features: PairFeatures, options: SplitOptions) -> Split:
    """The division that options ask for."""
    return draw_split(
        features, protocol=options.protocol, pairs=options.pairs, queries=options.queries, seed=options.split_seed,
        class_seed=options.class_seed,
    )  # fmt: skip


def finish_training(
    run: RunFolder,
    model: HashModel,
    features: PairFeatures,
    split: Split,
    *,
    method: str,
    facts: Mapping[str, Any],
    where: object,
) -> None:
    """Write the split, evaluate it where there are labels, and write the report.

    Args:
        run: The run.
        model: The trained model.
        features: All pairs.
        split: Their division.
        method: Name of the method.
        facts: What else stands at the head of the report.
        where: The data, for messages.
    """
    write_json(run.path / "split.json", split.to_dict())
    report = Report(f"{method}: {run.path.name}")
    report.facts(
        {
            "data": f"{where} ({len(features)} pairs)",
            "encoder": features.encoder,
            "training pairs": len(split.train),
            "bits": model.bits,
            **facts,
        }
    )
    metrics = run.metrics()
    names = [name for name in dict.fromkeys(name for row in metrics for name in row) if name not in ("step", "epoch")]
    terms = [name for name in names if not name.startswith(("bit_", "distinct"))]
    for title, shown in (
        ("Loss", terms),
        ("Bits of the training pairs", [n for n in names if n not in terms and n != "distinct_anchors"]),
    ):
        lines = {n: ([r["step"] for r in metrics if n in r], [r[n] for r in metrics if n in r]) for n in shown}
        if any(len(x) > 1 for x, _ in lines.values()):
            report.curve(title, lines, "step", "value")
    results: dict[str, Any] = {"train": len(split.train)}
    if split.groups and features.labels is not None:
        results |= evaluate_split(model, features, split, where=where)
        add_evaluation(report, model, features, split, results, where=where)
    run.write_results(results)
    report.write(run.path / "report.html")


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    hasher: Hasher,
    data: Path,
    *,
    options: DataOptions,
    conventions: Conventions,
    queries: int | None,
    protocol: Protocol | None,
    out: Path | None,
    json: bool,
    overwrite: bool,
) -> None:
    """See the commands."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise InputError("the folder holds files already", where=out, remedy="name another, or pass --overwrite")
    features = hasher.features(data, encoder=options.encoder, normalise=options.normalise, device=options.device)
    split = hasher.split()
    if protocol is not None and protocol != split.protocol:
        raise InputError(
            "the model was trained under another protocol", where="--protocol",
            why=f"asked {protocol}, trained {split.protocol}",
            remedy="unseen classes must be unseen in training: train with that --protocol",
        )  # fmt: skip
    if queries is not None:
        if split.protocol != "standard":
            raise InputError("new queries are drawn under the protocol standard only", where="--queries")
        split = draw_split(features, queries=queries, pairs=None, seed=split.seed, trained_on=split.train)
    results = evaluate_split(hasher.model, features, split, where=data, conventions=conventions)
    if out is not None:
        report = Report(f"Evaluation of {hasher.run}")
        report.facts(
            {"model": hasher.identity.name, "data": f"{data} ({len(features)} pairs)", "protocol": split.protocol}
        )
        add_evaluation(report, hasher.model, features, split, results, where=data)
        write_json(out / "evaluation.json", results)
        report.write(out / "report.html")
    print(json_format.dumps(results, indent=2) if json else _text_table(COLUMNS, table_rows(results)))


# --- codes ------------------------------------------------------------------------------------------------------------


def encode(
    hasher: Hasher,
    data: Path,
    out: Path,
    *,
    options: DataOptions,
    sides: Sides,
    keep_features: bool,
    overwrite: bool,
) -> None:
    """See the commands."""
    if out.suffix != ".npz":
        raise InputError("codes are written as .npz", where=out, remedy="end the name in .npz")
    if out.exists() and not overwrite:
        raise InputError("the output exists already", where=out, remedy="name another file, or pass --overwrite")
    items = items_of(hasher, data, options=options, sides=sides, keep_features=keep_features)
    arrays: dict[str, Any] = {
        "ids": np.array(items.ids), "codes": items.codes, "modality": np.array(items.modality),
        "payloads": np.array([json_format.dumps(each, ensure_ascii=False) for each in items.payloads or ()]),
        "model": np.array(json_format.dumps(dataclasses.asdict(hasher.identity))),
    }  # fmt: skip
    if items.features is not None:
        arrays["features"] = items.features
    with atomic_write(out) as temporary:
        np.savez_compressed(temporary, **arrays)
    print(f"{len(items.ids)} codes of {hasher.identity.bits} bits in {out}")


def items_of(hasher: Hasher, data: Path, *, options: DataOptions, sides: Sides, keep_features: bool) -> Items:
    """Items of an index: from a file of ``encode``, a feature file, or pairs.

    Raises:
        InputError: Codes of another model, or data that cannot be read.
    """
    if data.suffix == ".npz" and data.is_file():
        arrays = read_arrays(data)
        if "codes" in arrays:
            return _read_codes(hasher, data, arrays, keep_features=keep_features)
    features = hasher.features(data, encoder=options.encoder, normalise=options.normalise, device=options.device)
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
            "the codes were made by another model", where=path,
            why=f"{made['name']} ({made['fingerprint']}), "
            f"the run holds {hasher.identity.name} ({hasher.identity.fingerprint})",
            remedy="encode the data with this run",
        )  # fmt: skip
    features = arrays.get("features") if keep_features else None
    return Items(ids, codes, modality, payloads, features)  # type: ignore[arg-type]


def _payload(features: PairFeatures, row: int) -> dict[str, str]:
    found = {}
    if features.texts:
        found["text"] = features.texts[row]
    if features.images:
        found["image"] = features.images[row]
    return found


# --- index and search -------------------------------------------------------------------------------------------------


def index_build(
    hasher: Hasher,
    index: str,
    data: Path | None,
    *,
    options: DataOptions,
    sides: Sides,
    keep_features: bool,
    overwrite: bool,
) -> None:
    """See the commands."""
    if data is None:
        width = -(-hasher.identity.bits // 8)
        features = np.empty((0, hasher.model.dim), np.float32) if keep_features else None
        items = Items([], np.empty((0, width), np.uint8), [], [], features)
    else:
        items = items_of(hasher, data, options=options, sides=sides, keep_features=keep_features)
    with build_index(index, hasher.identity, items, overwrite=overwrite) as made:
        print(f"{made.info().size} items in {index}")


def index_add(hasher: Hasher, index: str, data: Path, *, options: DataOptions, sides: Sides) -> None:
    """See the commands."""
    with open_index(index, hasher.identity) as opened:
        items = items_of(hasher, data, options=options, sides=sides, keep_features=opened.info().features > 0)
        opened.add(items)
        print(f"{len(items.ids)} items added, {opened.info().size} in {index}")


def index_delete(index: str, ids: Sequence[str], *, modality: Modality | None) -> None:
    """See the commands."""
    if not ids:
        raise InputError("there is nothing to delete", where="--id", remedy="name at least one id")
    check_ids(list(dict.fromkeys(ids)), "--id")
    with open_index(index) as opened:
        count = opened.delete(list(dict.fromkeys(ids)), modality=modality)
        print(f"{count} items deleted, {opened.info().size} left in {index}")


def index_info(index: str, *, json: bool) -> None:
    """See the commands."""
    with open_index(index) as opened:
        found = opened.info().to_dict()
    if json:
        print(json_format.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<10}{value}")


def search(
    hasher: Hasher,
    index: str,
    *,
    text: Sequence[str],
    image: Sequence[Path],
    features: Path | None,
    asking: Modality,
    find: Find,
    k: int | None,
    radius: int | None,
    rerank: int | None,
    options: DataOptions,
    out: Path | None,
) -> None:
    """See the commands."""
    if features is not None:
        rows = _query_rows(hasher, features, asking, normalise=options.normalise)
    else:
        rows = query_features(hasher, text=text, image=image, encoder=options.encoder, device=options.device)
    lines = []
    with open_index(index, hasher.identity) as opened:
        if opened.info().size == 0:
            raise InputError("the index is empty", where=index, remedy="add items with index add")
        for name, modality, row in rows:
            hits = opened.search(
                hasher.hash(row, modality), k=k, radius=radius, modality=None if find == "either" else find,
                features=row if rerank is not None else None, rerank=rerank,
            )[0]  # fmt: skip
            lines += [json_format.dumps({"query": name, **_hit(hit)}, ensure_ascii=False) for hit in hits]
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in lines))
        print(f"{len(lines)} hits of {len(rows)} queries in {out}")
    else:
        print("\n".join(lines))


def _query_rows(
    hasher: Hasher, path: Path, asking: Modality, *, normalise: bool
) -> list[tuple[str, Modality, Float[np.ndarray, "1 d"]]]:
    found = read_features(path, normalise=normalise)
    hasher.check(found, path)
    return [(name, asking, found.of(asking)[row : row + 1]) for row, name in enumerate(found.ids)]


def _hit(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "modality": hit.modality, "hamming": hit.distance, "score": hit.score, **hit.payload}


# --- tuning -----------------------------------------------------------------------------------------------------------


def tune(
    features: PairFeatures,
    split: Split,
    grid: Mapping[str, Sequence[float | int]],
    train: Callable[[dict[str, Any], Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]], HashModel],
    *,
    out: Path | None,
    json: bool,
    where: object,
) -> None:
    """Train every setting of a grid and rank them by how well held-out pairs find each other; labels are not looked at.

    Args:
        features: All pairs.
        split: Its training pairs train four fifths; the last fifth is held out, with up to 500 others that are not
            queries.
        grid: Option to values.
        train: Trains one setting on image and text features.
        out: Folder for tune.json.
        json: Print JSON.
        where: The data, for messages.
    """
    rows = places(features, split.train, where)
    held = max(2, len(rows) // 5)
    if len(rows) - held < 4:
        raise InputError(
            "too few pairs to hold some out", where="--pairs", why=f"got {len(rows)}", remedy="use at least 6"
        )
    taken = set(split.train) | {name for group in split.groups.values() for name in group.queries}
    others = [row for row, name in enumerate(features.ids) if name not in taken][
        : 500 if split.protocol == "standard" else 0
    ]
    inner, outer = rows[:-held], np.concatenate([rows[-held:], np.array(others, dtype=np.int64)])
    results = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        model = train(setting, features.image[inner], features.text[inner])
        results.append({**setting, "pair_mrr": pair_recall(model, features.take(outer))})
    results.sort(key=lambda row: -row["pair_mrr"])
    if out is not None:
        write_json(out / "tune.json", {"held_out": len(outer), "trained_on": len(inner), "results": results})
    if json:
        print(json_format.dumps(results, indent=2))
    else:
        print(_text_table([*grid, "pair MRR"], [list(row.values()) for row in results]))


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    shown = [
        list(columns),
        *([f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for v in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )
