"""The command-line kit: exit codes, error blocks, settings files, and help without heavy imports."""

import subprocess
import sys
import textwrap

import pytest
from contrastive_core.cli import App, Command
from contrastive_core.errors import InputError


@pytest.fixture
def app(tmp_path, monkeypatch):
    (tmp_path / "verbs_of_test.py").write_text(
        textwrap.dedent(
            '''
            import dataclasses
            from typing import Annotated, Literal

            from contrastive_core.errors import InputError
            from cyclopts import Parameter

            @dataclasses.dataclass(frozen=True)
            class Settings:
                """Settings.

                Attributes:
                    epochs: Passes.
                    seed: Seed.
                    steps: Steps.
                    rates: Rates.
                    device: Where.
                    quick: In a hurry.
                """

                epochs: int = 100
                seed: int = 0
                steps: int | None = None
                rates: tuple[float, ...] = (1.0,)
                device: Literal["cpu", "auto"] = "auto"
                quick: bool = False

            OWN = Settings(epochs=400, steps=None, rates=(0.5, 0.25), device="cpu", quick=True)

            def settle(
                *, flat: Annotated[Settings, Parameter(name="*")] = OWN, named: Settings = Settings(seed=7)
            ) -> None:
                """Settle.

                Args:
                    flat: Options of their own.
                    named: Options below a name.
                """
                print(dataclasses.astuple(flat), dataclasses.astuple(named))

            def greet(name: str, *, times: int = 1, loud: bool = False) -> None:
                """Greet somebody.

                Args:
                    name: Who.
                    times: How often.
                    loud: Shout.
                """
                for _ in range(times):
                    print(name.upper() if loud else name)

            def refuse() -> None:
                """Refuse."""
                raise InputError("no", where="here", why="because", remedy="do otherwise")

            def crash() -> None:
                """Crash."""
                raise ZeroDivisionError("a bug")
            '''
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "verbs_of_test", raising=False)
    app = App("kit", help="A kit.", version="1.2.3")
    app.method(
        "m",
        help="A method.",
        commands=[
            Command("greet", "verbs_of_test:greet", "Say hello."),
            Command("refuse", "verbs_of_test:refuse", "Say no."),
            Command("crash", "verbs_of_test:crash", "Break."),
            Command("settle", "verbs_of_test:settle", "Settle."),
            Command("group greet", "verbs_of_test:greet", "Say hello, too."),
            Command("group refuse", "verbs_of_test:refuse", "Say no, too."),
        ],
    )
    return app


def test_one_field_given_leaves_the_others_at_the_default_of_the_function(app, capsys, tmp_path):
    own, named = (400, 0, None, (0.5, 0.25), "cpu", True), (100, 7, None, (1.0,), "auto", False)
    assert app.run(["m", "settle"]) == 0
    assert capsys.readouterr().out == f"{own} {named}\n"
    assert app.run(["m", "settle", "--seed", "3", "--named.epochs", "2"]) == 0
    assert capsys.readouterr().out == f"{(400, 3, *own[2:])} {(2, *named[1:])}\n"
    assert app.run(["m", "settle", "--rates", "0.1", "--no-quick", "--steps", "9"]) == 0
    assert capsys.readouterr().out == f"{(400, 0, 9, (0.1,), 'cpu', False)} {named}\n"
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 5\nnamed:\n  device: cpu\n")
    assert app.run(["m", "settle", "--seed", "1", "--config", str(file)]) == 0
    assert capsys.readouterr().out == f"{(5, 1, *own[2:])} {(*named[:4], 'cpu', False)}\n"


def test_a_length_that_is_given_ends_the_default_of_the_other_length(capsys, tmp_path, monkeypatch):
    (tmp_path / "verbs_of_length.py").write_text(
        textwrap.dedent(
            '''
            from typing import Annotated

            from contrastive_core.training.settings import TrainSettings
            from cyclopts import Parameter

            def train(*, train: Annotated[TrainSettings, Parameter(name="*")] = TrainSettings(steps=300)) -> None:
                """Train."""
                print(train.total_steps(10))
            '''
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    app = App("kit", help="A kit.", version="1.2.3")
    app.method("m", help="A method.", commands=[Command("train", "verbs_of_length:train", "Train.")])
    for words, steps in (("", 300), ("--epochs 2", 20), ("--epochs 2 --steps 7", 7), ("--seed 1", 300)):
        assert app.run(["m", "train", *words.split()]) == 0
        assert capsys.readouterr().out == f"{steps}\n"


def test_runs_a_function_with_its_options(app, capsys):
    assert app.run(["m", "greet", "Ada", "--times", "2", "--loud"]) == 0
    assert capsys.readouterr().out == "ADA\nADA\n"


def test_verbs_of_two_words_stand_in_one_group(app, capsys):
    assert app.run(["m", "group", "greet", "Ada"]) == 0
    assert capsys.readouterr().out == "Ada\n"
    assert app.run(["m", "group", "refuse"]) == 2
    capsys.readouterr()
    assert app.run(["m", "--help"]) == 0
    assert "greet, refuse" in capsys.readouterr().out
    assert app.run(["m", "group", "--help"]) == 0
    assert "Say no, too." in capsys.readouterr().out


def test_bad_input_is_one_block_and_status_two(app, capsys):
    assert app.run(["m", "refuse"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "error: no\n  where:  here\n  why:    because\n  remedy: do otherwise\n"


@pytest.mark.parametrize(
    "words",
    [["m", "greet"], ["m", "greet", "a", "--times", "x"], ["m", "greet", "a", "--tims", "2"], ["m", "nothing"], ["x"]],
)
def test_wrong_options_exit_two_and_point_to_help(app, capsys, words):
    assert app.run(words) == 2
    assert "--help" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(app):
    with pytest.raises(ZeroDivisionError):
        app.run(["m", "crash"])


def test_debug_shows_the_traceback_of_bad_input(app, capsys):
    assert app.run(["m", "refuse", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_settings_file_gives_options_and_the_command_line_wins(app, capsys, tmp_path):
    settings = tmp_path / "s.yaml"
    settings.write_text("times: 3\nloud: true\n")
    assert app.run(["m", "greet", "a", "--config", str(settings), "--times", "1"]) == 0
    assert capsys.readouterr().out == "A\n"
    assert app.run(["m", "greet", "a"]) == 0
    assert capsys.readouterr().out == "a\n"


@pytest.mark.parametrize("content", ["- 1\n", "a: [", "unknown: 3\n", None])
def test_bad_settings_file_is_refused(app, capsys, tmp_path, content):
    settings = tmp_path / "s.yaml"
    if content is not None:
        settings.write_text(content)
    assert app.run(["m", "greet", "a", "--config", str(settings)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_lists_verbs_without_importing_them(app, capsys):
    assert app.run(["m", "--help"]) == 0
    text = capsys.readouterr().out
    assert "greet" in text
    assert "Say hello." in text
    assert "verbs_of_test" not in sys.modules


@pytest.mark.parametrize("words", [["--help"], ["mantis", "--help"], ["--version"]])
def test_package_help_imports_neither_torch_nor_sklearn(words):
    script = (
        "import sys\nfrom cl_signals.cli import app\n"
        f"status = app.run({words!r})\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'pyarrow', 'matplotlib', 'lightning'} & set(sys.modules)\n"
        "assert status == 0 and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_error_survives_a_process_boundary():
    import pickle

    error = InputError("a", where="b", why="c", remedy="d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
