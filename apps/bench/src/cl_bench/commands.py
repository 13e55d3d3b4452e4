"""The verbs of ``cl-bench``."""

import importlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError, require
from contrastive_core.files import json_text, write_json
from contrastive_core.tables import print_rows
from contrastive_core.training.run_folder import environment

from cl_bench.measures import processor
from cl_bench.report import claim_text, claims_report, speed_text

CLAIMS = {
    "mantis": "CauKer pre-training against an untrained network, KernelSynth and raw series",
    "cfa": "factor recovery, interpretability and uncertainty of CFA and CNFA against SimCLR and NCL",
    "promptgnn-sim": "text-attributed graphs with rewired edges against text alone, graphs alone and its own parts",
    "mpcl": "prototypes from intensities against supervised-only, Mean Teacher and one prototype a class",
    "cecl": "embeddings from the compression echo against SimCLR, SI/TI and an image network",
    "gnah": "prototypes and neighbourhoods against pairwise contrast, DJSRH, CCA-ITQ and random projections, few pairs",
    "apkh": "attribute kernels against hashing of raw features, on classes that never occurred in training",
}
SPEEDS = {
    "core": "softmax losses against the dense formula, lightly, open_clip and pytorch-metric-learning",
    "losses": "every loss of the core at 16 to 4,096 rows against the fastest of its peers, slowest cell first",
    "retrieval": "mean average precision over packed codes against torchmetrics",
    "index": "a million binary codes, written and searched, against float search, faiss and LanceDB's own search",
    "mantis": "embedding against mantis-tsfm, Gaussian processes against scikit-learn",
    "cfa": "a training step against plain SimCLR, the spectral loss against its dense form",
    "promptgnn-sim": "a training step and inference against torch-geometric's GAT, and a graph of 200,000 nodes",
    "mpcl": "a training step against the published dense algorithm",
    "cecl": "echo extraction by core and worker, memory of a two-hour input, a training step against SimCLR",
    "gnah": "a training step against the equations taken pair by pair",
    "apkh": "a training step against the equations taken pair by pair",
}


def show(*, json: bool = False, out: Path | None = None) -> None:
    """What can be measured.

    Args:
        json: Print JSON instead of a table.
        out: Folder for show.json.
    """
    entries = {"claims": CLAIMS, "speed": SPEEDS}
    if out is not None:
        write_json(out / "show.json", entries)
    if json:
        print(json_text(entries))
        return
    print_rows(
        [{"kind": kind, "name": name, "what": what} for kind, texts in entries.items() for name, what in texts.items()]
    )


def claims(
    *names: str,
    seeds: int = 3,
    data: Path | None = None,
    strict: bool = False,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Train methods and their baselines on the same data, seeds and budget, and compare.

    Args:
        names: Methods; all when none is named.
        seeds: Number of seeds, from 0; a single one gives no interval.
        data: Folder of further data for the one method named.
        strict: Exit with status 1 when a gate does not hold.
        json: Print JSON instead of tables.
        out: Folder for claims.json and report.html.
    """
    _known(names, CLAIMS)
    require(seeds >= 1, "--seeds", seeds, "at least one seed")
    _check_data(names, data)
    results: list[dict[str, Any]] = []
    for name in names or CLAIMS:
        started = time.perf_counter()
        outcomes = [outcome.to_dict() for outcome in _module("claims", name).claims(range(seeds), data)]
        results += outcomes
        if not json:
            print(f"{claim_text(outcomes)}\n{time.perf_counter() - started:.0f} s\n", flush=True)
    if out is not None:
        write_json(out / "claims.json", {"environment": environment(0), "claims": results})
        claims_report(results).write(out / "report.html")
    if json:
        print(json_text(results))
    return int(strict and any(each["gate"] and not each["holds"] for each in results))


def speed(*names: str, rounds: int = 5, threads: int = 2, json: bool = False, out: Path | None = None) -> None:
    """Time methods against their peers, alternately in one process.

    Args:
        names: Methods; all when none is named.
        rounds: Timed rounds; slow entries say that they take fewer.
        threads: CPU threads of torch.
        json: Print JSON instead of lines.
        out: Folder for speed.json.
    """
    import torch

    _known(names, SPEEDS)
    require(rounds >= 1, "--rounds", rounds, "at least one round")
    require(threads >= 1, "--threads", threads, "at least one thread")
    torch.set_num_threads(threads)
    machine = {"processor": processor(), "threads": threads}
    if not json:
        print(f"{machine['processor']}, {threads} thread{'' if threads == 1 else 's'}", flush=True)
    results = []
    for name in names or SPEEDS:
        for entry in _module("speed", name).speed(rounds):
            results.append(entry.to_dict())
            if not json:
                print(speed_text(results[-1]), flush=True)
    if out is not None:
        write_json(out / "speed.json", {"environment": environment(None), **machine, "speed": results})
    if json:
        print(json_text({**machine, "speed": results}))


def _module(kind: str, name: str) -> Any:
    return importlib.import_module(f"cl_bench.{kind}.{name.replace('-', '_')}")


def _known(names: Iterable[str], entries: dict[str, str]) -> None:
    for name in names:
        if name not in entries:
            raise InputError(
                "nothing of that name is measured", why=f"got {name}", remedy=f"one of {', '.join(entries)}"
            )


def _check_data(names: tuple[str, ...], data: Path | None) -> None:
    if data is not None and len(names) != 1:
        raise InputError(
            "further data belong to one method", where="--data", why=f"got {len(names)} names", remedy="name one method"
        )
    if data is not None and not data.is_dir():
        raise InputError("the folder of further data is missing", where=data, remedy="check the path")
