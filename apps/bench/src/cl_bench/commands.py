"""The verbs of ``cl-bench``."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrastive_core.errors import InputError
from contrastive_core.files import write_json
from contrastive_core.report import Report
from contrastive_core.training.run_folder import environment

_CLAIMS = {"mantis": "CauKer pre-training against an untrained network, KernelSynth and raw series"}
_SPEED = {
    "core": "NT-Xent against the dense formula",
    "mantis": "embedding against mantis-tsfm, Gaussian processes against scikit-learn",
}


def show() -> None:
    """What can be measured."""
    for title, entries in (("claims", _CLAIMS), ("speed", _SPEED)):
        for name, text in entries.items():
            print(f"{title:<8}{name:<10}{text}")


def claims(*names: str, seeds: int = 3, data: Path | None = None, json: bool = False, out: Path | None = None) -> None:
    """Train methods and their baselines on the same data, seeds and budget, and compare.

    Args:
        names: Methods; all when none is named.
        seeds: Number of seeds, from 0.
        data: Folder of further data sets, one folder each.
        json: Print JSON instead of tables.
        out: Folder for claims.json and report.html.
    """
    from cl_bench import mantis

    _known(names, _CLAIMS)
    if seeds < 1:
        raise InputError("at least one seed is needed", where="--seeds", why=f"got {seeds}")
    results = [claim.to_dict() for claim in mantis.claims(range(seeds), data)]
    if out is not None:
        write_json(out / "claims.json", {"environment": environment(0), "claims": results})
        _claims_report(results).write(out / "report.html")
    if json:
        print(json_format.dumps(results, indent=2))
        return
    for result in results:
        verdict = "holds" if result["holds"] else "does not hold"
        gap = result["paired_difference"]
        tail = "" if result["gate"] else ", reported only"
        print(f"{result['name']}: {verdict} ({gap['mean']:+.4f} ± {gap['sd']:.4f}{tail})")
        for arm, score in result["arms"].items():
            print(f"  {arm:<28}{score['mean']:.4f} ± {score['sd']:.4f}")
    for note in results[0]["notes"]:
        print(note)
    print(f"{results[0]['seconds']:.0f} s")


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

    from cl_bench import core, mantis

    _known(names, _SPEED)
    if rounds < 1 or threads < 1:
        raise InputError("rounds and threads are positive", where="--rounds, --threads", why=f"got {rounds}, {threads}")
    torch.set_num_threads(threads)
    wanted = names or tuple(_SPEED)
    modules = {"core": core, "mantis": mantis}
    results = [entry.to_dict() for name in wanted for entry in modules[name].speed(rounds)]  # type: ignore[attr-defined]
    if out is not None:
        write_json(out / "speed.json", {"environment": environment(None), "threads": threads, "speed": results})
    if json:
        print(json_format.dumps(results, indent=2))
        return
    for result in results:
        print(
            f"{result['name']}: {result['ratio']:.2f}x {result['peer']} "
            f"({result['ours_seconds']:.3f} s against {result['theirs_seconds']:.3f} s; "
            f"peak {result['ours_peak_mib']:.0f} against {result['theirs_peak_mib']:.0f} MiB; {result['notes']})"
        )


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
    for note in results[0]["notes"]:
        report.text(note)
    return report
