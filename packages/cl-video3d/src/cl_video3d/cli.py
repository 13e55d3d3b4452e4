"""``cl-video3d``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App

from cl_video3d import __version__

app = App("cl-video3d", help="Contrastive learning for video and 3-D.", version=__version__)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
