"""The command line every package's command is built with.

Commands are ordinary typed functions named by import path; the module behind a command is imported when the command
runs, or when its own help is asked for, so ``--help`` of a package answers without importing torch.
"""

import dataclasses
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import cyclopts
import yaml
from cyclopts import App as CycloptsApp

from contrastive_core.errors import ContrastiveWarning, InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a method.

    Attributes:
        name: The verb, as typed; two words (``index build``) for verbs that belong together.
        path: Import path of the function behind it, ``"package.module:function"``.
        help: One line shown in the list of commands, before anything heavy is imported.
    """

    name: str
    path: str
    help: str


class App:
    """A package's command: ``<name> <method> <verb>``.

    Args:
        name: The command's name (``cl-signals``).
        help: What the package does, one sentence.
        version: The package's version.
    """

    def __init__(self, name: str, help: str, version: str) -> None:
        self._app = CycloptsApp(name=name, help=help, version=version, help_on_error=False)
        self._name = name

    def command(self, command: Command) -> None:
        """Add a verb directly below the package's command."""
        self._app.command(command.path, name=command.name, help=command.help)

    def method(self, name: str, help: str, commands: Sequence[Command]) -> None:
        """Add a method with its verbs.

        Args:
            name: The method, as typed.
            help: What the method is for, one line.
            commands: Its verbs, in the order of the help page.
        """
        method = CycloptsApp(name=name, help=help)
        groups: dict[str, CycloptsApp] = {}
        for index, command in enumerate(commands):
            group, _, verb = command.name.rpartition(" ")
            if group and group not in groups:
                verbs = [each.name.rpartition(" ")[2] for each in commands if each.name.startswith(f"{group} ")]
                groups[group] = CycloptsApp(
                    name=group, help=f"{', '.join(verbs)}: see `{group} --help`.", sort_key=index
                )
                method.command(groups[group])
            parent = groups[group] if group else method
            parent.command(command.path, name=verb, help=command.help, sort_key=index)
        self._app.command(method)

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Run one command line and return its exit status.

        Status 2 with a short block on standard error for bad input, 130 after Ctrl-C, 1 with a traceback for a bug.
        ``--debug`` anywhere shows the traceback in every case; ``--config FILE`` gives options from a YAML file, which
        the command line overrides.

        Args:
            arguments: Words after the program's name; ``sys.argv`` when absent.
        """
        words = list(sys.argv[1:] if arguments is None else arguments)
        debug = "--debug" in words
        words = [word for word in words if word != "--debug"]
        try:
            words, config = _take_config(words)
            self._app.config = [*([] if config is None else [_config_source(config)]), _keep_defaults]
            with warnings.catch_warnings():
                warnings.simplefilter("always", ContrastiveWarning)
                warnings.showwarning = _show_warning
                result = self._app(words, exit_on_error=False, print_error=False, result_action="return_value")
        except InputError as error:
            if debug:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT
        except cyclopts.CycloptsError as error:
            if debug:
                traceback.print_exc()
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            print(f"  remedy: see `{self._help_line(words)}`", file=sys.stderr)
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            print("interrupted; a training run continues with --resume", file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader (`head`, a closed pager) has gone; there is nobody left to tell.
            sys.stderr.close()
            return 128 + signal.SIGPIPE
        return result if isinstance(result, int) and not isinstance(result, bool) else 0

    def main(self) -> NoReturn:
        """Entry point of a console script."""
        sys.exit(self.run())

    def _help_line(self, words: list[str]) -> str:
        verbs = []
        for word in words[:2]:
            if word.startswith("-"):
                break
            verbs.append(word)
        return " ".join([self._name, *verbs, "--help"])


def _take_config(words: list[str]) -> tuple[list[str], Path | None]:
    """Split ``--config FILE`` (or ``--config=FILE``) off the command line."""
    rest: list[str] = []
    config: Path | None = None
    pending = iter(words)
    for word in pending:
        if word == "--config":
            value = next(pending, None)
            if value is None:
                raise InputError("an option lacks its value", where="--config", remedy="name a YAML file")
            config = Path(value)
        elif word.startswith("--config="):
            config = Path(word.removeprefix("--config="))
        else:
            rest.append(word)
    return rest, config


def _config_source(path: Path) -> cyclopts.config.Dict:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("the settings file is missing", where=path, remedy="check the path after --config") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            "the settings file could not be read",
            where=path,
            why=" ".join(str(error).split()),
            remedy="write one `option: value` a line, in YAML",
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            "the settings file holds no settings",
            where=path,
            why=f"a mapping of options is expected, found {type(values).__name__}",
            remedy="write one `option: value` a line, in YAML",
        )
    # The file holds one command's options, so it applies at whatever depth the command stands.
    return cyclopts.config.Dict(values, use_commands_as_keys=False, source=str(path))


def _keep_defaults(_: CycloptsApp, __: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Fields that are not given keep what the function's own default says, not what their class says.

    Cyclopts makes a settings object anew from its class as soon as one of its fields is given; a function whose default
    is ``TrainSettings(epochs=400)`` would train for the class's number of epochs when only ``--seed`` is set. A field
    whose metadata say ``instead_of`` another one ends the default of that one when it is given: ``--epochs`` is not
    overruled by a default number of steps.
    """
    for argument in arguments:
        default = argument.field_info.default
        if dataclasses.is_dataclass(default) and argument.has_tokens:
            given = {child.field_info.name for child in argument.children if child.has_tokens}
            replaced = {f.metadata.get("instead_of") for f in dataclasses.fields(default) if f.name in given}
            for child in argument.children:
                if not child.has_tokens and child.field_info.name not in replaced:
                    value = getattr(default, child.field_info.name)
                    child.append(cyclopts.Token(keyword=child.name, source="default", implicit_value=value))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, ContrastiveWarning):
        print(f"note: {message}", file=sys.stderr)
