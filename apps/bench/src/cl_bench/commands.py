"""The verbs of ``cl-bench``."""

import importlib
import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import write_json
from contrastive_core.report import Report
from contrastive_core.training.run_folder import environment

_CLAIMS = {
    "mantis": "CauKer pre-training against an untrained network, KernelSynth and raw series",
    "cfa": "factor recovery, interpretability and uncertainty of CFA and CNFA against SimCLR and NCL",
    "promptgnn-sim": "text-attributed graphs with rewired edges against text alone, graphs alone and its own parts",
    "mpcl": "prototypes from intensities against supervised-only, Mean Teacher and one prototype a class",
    "cecl": "embeddings from the compression echo against SimCLR, SI/TI and an image network",
    "gnah": "prototypes and neighbourhoods against pairwise contrast, DJSRH, CCA-ITQ and random projections, few pairs",
    "apkh": "attribute kernels against hashing of raw features, on classes that never occurred in training",
}
_SPEED = {
    "core": "softmax losses against the dense formula, lightly, open_clip and pytorch-metric-learning",
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
        out: Folder for list.json.
    """
    entries = {"claims": _CLAIMS, "speed": _SPEED}
    if out is not None:
        write_json(out / "list.json", entries)
    if json:
        print(json_format.dumps(entries, indent=2))
        return
    for title, texts in entries.items():
        for name, text in texts.items():
            print(f"{title:<8}{name:<12}{text}")


def claims(*names: str, seeds: int = 3, data: Path | None = None, json: bool = False, out: Path | None = None) -> None:
    """Train methods and their baselines on the same data, seeds and budget, and compare.

    Args:
        names: Methods; all when none is named.
        seeds: Number of seeds, from 0.
        data: Folder of further data for the one method named.
        json: Print JSON instead of tables.
        out: Folder for claims.json and report.html.
    """
    _known(names, _CLAIMS)
    if seeds < 1:
        raise InputError("at least one seed is needed", where="--seeds", why=f"got {seeds}")
    if data is not None and len(names) != 1:
        raise InputError(
            "further data belong to one method", where="--data", why=f"got {len(names)} names", remedy="name one method"
        )
    if data is not None and not data.is_dir():
        raise InputError("the folder of further data is missing", where=data)
    results = []
    for name in names or tuple(_CLAIMS):
        outcome = [claim.to_dict() for claim in _module("claims", name).claims(range(seeds), data)]
        results.extend(outcome)
        if not json:
            _print_claims(outcome)
    if out is not None:
        write_json(out / "claims.json", {"environment": environment(0), "claims": results})
        _claims_report(results).write(out / "report.html")
    if json:
        print(json_format.dumps(results, indent=2))


def speed(*names: str, rounds: int = 5, threads: int = 2, json: bool = False, out: Path | None = None) -> None:
    """Time methods against their peers, alternately in one process.

    Args:
        names: Methods; all when none is named.
        rounds: Timed rounds.
        threads: CPU threads of torch.
        json: Print JSON instead of a table.
        out: Folder for speed.json.
    """
    import torch

    _known(names, _SPEED)
    if rounds < 1 or threads < 1:
        raise InputError("rounds and threads are positive", where="--rounds, --threads", why=f"got {rounds}, {threads}")
    torch.set_num_threads(threads)
    results = []
    for name in names or tuple(_SPEED):
        for entry in _module("speed", name).speed(rounds):
            result = entry.to_dict()
            results.append(result)
            if not json:
                print(
                    f"{result['name']}: {result['ratio']:.2f}x {result['peer']} "
                    f"({result['ours_seconds']:.4g} s against {result['theirs_seconds']:.4g} s; "
                    f"peak {result['ours_peak_mib']:.0f} against {result['theirs_peak_mib']:.0f} MiB; "
                    f"{result['notes']})",
                    flush=True,
                )
    if out is not None:
        write_json(out / "speed.json", {"environment": environment(None), "threads": threads, "speed": results})
    if json:
        print(json_format.dumps(results, indent=2))


def _module(kind: str, name: str) -> Any:
    return importlib.import_module("cl_bench.index" if name == "index" else f"cl_bench.{kind}.{name.replace('-', '_')}")


def _print_claims(results: list[dict[str, Any]]) -> None:
    for result in results:
        verdict = "holds" if result["holds"] else "does not hold"
        gap = result["paired_difference"]
        tail = "" if result["gate"] else ", reported only"
        print(f"{result['name']}: {verdict} ({gap['mean']:+.4f} ± {gap['sd']:.4f}{tail})")
        for arm, score in result["arms"].items():
            print(f"  {arm:<28}{score['mean']:.4f} ± {score['sd']:.4f}")
    for note in dict.fromkeys(note for result in results for note in result["notes"]):
        print(note)
    print(f"{max(result['seconds'] for result in results):.0f} s", flush=True)


def _known(names: Sequence[str], entries: dict[str, str]) -> None:
    for name in names:
        if name not in entries:
            raise InputError(
                "nothing of that name is measured", why=f"got {name}", remedy=f"one of {', '.join(entries)}"
            )


def _claims_report(results: list[dict[str, Any]]) -> Report:
    report = Report("Claims")
    report.table(
        "Outcome",
        ["claim", "holds", "difference", "sd", "gate"],
        [
            [
                each["name"],
                "yes" if each["holds"] else "no",
                each["paired_difference"]["mean"],
                each["paired_difference"]["sd"],
                "yes" if each["gate"] else "reported",
            ]
            for each in results
        ],
    )
    for each in results:
        report.table(
            each["name"],
            ["arm", "mean", "sd"],
            [[arm, score["mean"], score["sd"]] for arm, score in each["arms"].items()],
        )
        for title, rows in each["details"].items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            report.table(title, columns, [[row.get(name) for name in columns] for row in rows])
        for title, lines in each["curves"].items():
            report.curve(title, lines, "training size", "score")
    for note in dict.fromkeys(note for each in results for note in each["notes"]):
        report.text(note)
    return report
