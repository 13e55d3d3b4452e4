"""``cl-bench``: show, claims, speed."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_bench import __version__

app = App("cl-bench", help="Claims and speed of every method, measured beside their baselines.", version=__version__)
app.command(Command("show", "cl_bench.commands:show", "List the claims and the speeds that can be measured."))
app.command(
    Command(
        "claims",
        "cl_bench.commands:claims",
        "Train methods and their baselines; say which claims hold, with intervals.",
    )
)
app.command(Command("speed", "cl_bench.commands:speed", "Time methods and losses against their peers, alternately."))


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
