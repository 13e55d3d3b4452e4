"""``cl-medical``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_medical import __version__

_MPCL = "cl_medical.mpcl.commands"

app = App("cl-medical", help="Contrastive learning for medical images.", version=__version__)
app.method(
    "mpcl",
    help="Segment 3-D volumes from a handful of labelled scans and many unlabelled ones.",
    commands=[
        Command("sample-data", f"{_MPCL}:sample_data", "Write small simulated MR volumes with labels."),
        Command("prepare", f"{_MPCL}:prepare", "Raw NIfTI or DICOM scans into cases and split lists."),
        Command("inspect", f"{_MPCL}:inspect", "What a folder of cases holds, and what would be refused."),
        Command("train", f"{_MPCL}:train", "Train MPCL or a baseline; leaves a run folder with a report."),
        Command("evaluate", f"{_MPCL}:evaluate", "Dice, Jaccard and surface distances of a run, case by case."),
        Command("predict", f"{_MPCL}:predict", "Segment new volumes and write NIfTI in their own space."),
        Command("prototypes", f"{_MPCL}:prototypes", "What each prototype stands for in one case."),
        Command("compare", f"{_MPCL}:compare", "Paired tests between evaluated runs."),
        Command("info", f"{_MPCL}:info", "The paper, the claim and how to cite."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
