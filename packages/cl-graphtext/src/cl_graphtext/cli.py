"""``cl-graphtext``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App

from cl_graphtext import __version__

app = App("cl-graphtext", help="Contrastive learning for graphs whose nodes carry text.", version=__version__)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
