"""Every training verb of every package, and what it needs to train in about two seconds. A new method joins here."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.foundations.conftest import tiny_cfa
from tests.graphtext.conftest import tiny_promptgnn_sim
from tests.medical.conftest import tiny_mpcl
from tests.retrieval.conftest import tiny_apkh, tiny_gnah
from tests.video3d.conftest import tiny_cecl


@dataclasses.dataclass(frozen=True)
class Verb:
    """A training verb.

    Attributes:
        words: The command and its verb, such as ``cl-signals mantis pretrain``.
        data: Makes tiny data in a folder and names what the verb is given.
        options: What makes it train in about two seconds, with at least six steps.
        halves: A batch-size option and its value that ``options`` give; where half of it with ``--accumulate 2`` gives
            the same weights. ``None`` where the loss contrasts the micro-batch, or draws differ between micro-batches.
        still: Options that switch all draws off, with which two processes give the weights of one. ``None`` where
            there is no such option; then both processes must still agree, and exchange what they contrast.
        contrasts: Whether the loss contrasts rows, which processes then have to exchange in every step.
        network: Whether the verb trains by steps at all, so that it has checkpoints and a log.
    """

    words: str
    data: Callable[[Path], Path]
    options: str
    halves: tuple[str, int] | None = None
    still: str | None = None
    contrasts: bool = True
    network: bool = True

    @property
    def app(self) -> Any:
        """The package's command."""
        return importlib.import_module(f"{self.words.split()[0].replace('-', '_')}.cli").app

    def line(self, data: object, out: object, *options: str) -> list[str]:
        """The command line, with some options replaced or added."""
        given = {option for option in options if option.startswith("--")}
        kept: list[str] = []
        taking = True
        for word in self.options.split():
            if word.startswith("--"):
                taking = word not in given
            if taking:
                kept.append(word.replace("{folder}", str(Path(str(data)).parent)))
        return [*self.words.split()[1:], str(data), str(out), *kept, *options]

    def run(self, data: object, out: object, *options: str) -> int:
        """Train."""
        return int(self.app.run(self.line(data, out, *options)))

    def __str__(self) -> str:
        return self.words


QUICK = " --seed 3 --no-progress --accelerator cpu --log-every 1 --checkpoint-every 2"


def corpus(folder: Path) -> Path:
    """Random walks."""
    np.save(folder / "corpus.npy", np.random.default_rng(0).normal(size=(32, 64)).cumsum(1).astype(np.float32))
    return folder / "corpus.npy"


def series(folder: Path) -> Path:
    """Labelled random walks."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, 2, 64)).cumsum(-1).astype(np.float32), np.arange(16) % 2
    np.savez(folder / "series.npz", X_train=x[0], y_train=y, X_test=x[1], y_test=y)
    return folder / "series.npz"


_HASHES = "--pairs 16 --queries 4 --bits 8 --hidden 16 --steps 6 --batch-size 8"
VERBS = [
    Verb(
        "cl-signals mantis pretrain",
        corpus,
        "--preset tiny --steps 6 --batch-size 8" + QUICK,
        still="--views.crop 0",
    ),
    Verb(
        "cl-signals mantis train",
        series,
        "--mode scratch --preset tiny --length 64 --steps 6 --batch-size 8" + QUICK,
        contrasts=False,
    ),
    Verb(
        "cl-foundations cfa train",
        tiny_cfa,
        "--backbone tiny --image-size 16 --hidden 16 --factors 8 --steps 6 --batch-size 8" + QUICK,
    ),
    Verb(
        "cl-medical mpcl train",
        tiny_mpcl,
        "--network.width 4 --network.downsamplings 2 --patch 16 12 16 --stride 8 8 8 --batch-size 2 --labelled 2 "
        "--steps 6" + QUICK,
        contrasts=False,
    ),
    Verb("cl-retrieval gnah train", tiny_gnah, _HASHES + QUICK, still="--variant pairwise"),
    Verb(
        "cl-retrieval apkh train",
        tiny_apkh,
        _HASHES
        + " --attributes {folder}/attributes.txt --attribute-features {folder}/attributes.npy --variance auto"
        + QUICK,
        still="--no-smooth",
    ),
    Verb(
        "cl-graphtext promptgnn-sim train",
        tiny_promptgnn_sim,
        "--features {folder}/data.npy --no-prompt --steps 8 --batch-size 8 --stages.warmup 2 --stages.reselect 3 "
        "--validate-every 2 --width 16 --heads 2 --fusion-heads 2" + QUICK,
        still="--unlabelled 0",
    ),
    Verb("cl-video3d cecl train", tiny_cecl, "--steps 6 --batch-size 8" + QUICK),
]
