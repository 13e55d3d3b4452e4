"""The command line every package's command is built with.

Commands are ordinary typed functions named by import path; the module behind a command is imported when the command
runs, or when its own help is asked for, so ``--help`` of a package answers without importing torch.
"""

import dataclasses
import inspect
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import cyclopts
import yaml
from cyclopts import App as CycloptsApp
from cyclopts import Parameter

from contrastive_core.errors import ContrastiveWarning, InputError, Terminated
from contrastive_core.files import read_text, reading

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

Flat = Parameter(name="*")
"""Marks an argument or a field whose own fields are options without a prefix: ``Annotated[Settings, Flat]``."""

_NOT_SETTINGS = frozenset({"out", "resume", "overwrite", "json", "dry_run"})
"""Arguments of a verb that say where and how it runs, not what it computes."""


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
        self._app = CycloptsApp(
            name=name, help=help, version=version, help_on_error=False, suppress_keyboard_interrupt=False
        )
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

        Status 2 with a short block on standard error for bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 with a
        traceback for a bug.
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
                _raise_on_sigterm()
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
        except KeyboardInterrupt as stop:
            print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except Terminated as stop:
            print(f"terminated: {stop}" if str(stop) else "terminated", file=sys.stderr)
            return EXIT_TERMINATED
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
    if not path.is_file():  # a pipe would be waited for
        raise InputError("the settings file is missing", where=path, remedy="check the path after --config")
    text = read_text(path)
    with reading(path, "the settings file could not be read", "write one `option: value` a line, in YAML"):
        values: Any = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise InputError(
            "the settings file holds no settings",
            where=path,
            why=f"a mapping of options is expected, found {type(values).__name__}",
            remedy="write one `option: value` a line, in YAML",
        )
    # The file holds one command's options, so it applies at whatever depth the command stands.
    return cyclopts.config.Dict(_named(values, path), use_commands_as_keys=False, source=str(path))


def _named(values: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    for name in values:
        if not isinstance(name, str):
            raise InputError("an option's name is no text", where=path, why=f"got {name!r}", remedy="quote it")
    return {name: _named(value, path) if isinstance(value, dict) else value for name, value in values.items()}


def options_of(verb: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a call of a verb, nested as on the command line, for ``config.yaml``.

    The result given back with ``--config`` repeats the call. Where and how it ran (``out``, ``resume``, ``overwrite``,
    ``json``) is left out.

    Args:
        verb: The verb's function.
        values: Its arguments by name; ``locals()`` at its first line.

    Raises:
        ValueError: Two options have one name.

    Example:
        >>> from typing import Annotated
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     batch_size: int = 8
        >>> def train(data: Path, out: Path, *, settings: Annotated[Settings, Flat] = Settings()) -> None: ...
        >>> options_of(train, {"data": Path("scans"), "out": Path("run"), "settings": Settings()})
        {'data': 'scans', 'batch_size': 8}
    """
    options: dict[str, Any] = {}
    hints = get_type_hints(verb, include_extras=True)
    for name in inspect.signature(verb).parameters:
        if name not in _NOT_SETTINGS:
            _add(options, name, values[name], hints[name], verb)
    return options


def _add(options: dict[str, Any], name: str, value: Any, hint: Any, verb: Callable[..., Any]) -> None:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        if name in options:
            raise ValueError(f"{verb.__qualname__} has two options of the name {name}")
        options[name] = _plain(value)
        return
    flat = options if _is_flat(hint, value) else options.setdefault(name, {})
    hints = get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        _add(flat, field.name, getattr(value, field.name), hints[field.name], verb)


def _is_flat(hint: Any, value: Any) -> bool:
    marks = (
        [mark for mark in get_args(hint)[1:] if isinstance(mark, Parameter)] if get_origin(hint) is Annotated else []
    )
    own = getattr(type(value), "__cyclopts__", None)  # what a decorator of the class says
    return any("*" in (mark.name or ()) for mark in [*marks, *(getattr(own, "parameters", []) or [])])


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _keep_defaults(_: CycloptsApp, __: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Fields that are not given keep what the function's own default says, not what their class says.

    Cyclopts makes a settings object anew from its class as soon as one of its fields is given; a function whose default
    is ``Settings(training=TrainSettings(epochs=400))`` would train for the class's number of epochs when only
    ``--seed`` is set. A field whose metadata say ``instead_of`` another one ends the default of that one when it is
    given: ``--epochs`` is not overruled by a default number of steps.
    """
    for argument in arguments:
        if len(argument.keys) == 0 and dataclasses.is_dataclass(argument.field_info.default) and _has_tokens(argument):
            _fill(argument, argument.field_info.default)


def _fill(argument: Any, default: Any) -> None:
    children = {child.keys[-1]: child for child in argument.children}
    given = {name for name, child in children.items() if _has_tokens(child)}
    replaced = {field.metadata.get("instead_of") for field in dataclasses.fields(default) if field.name in given}
    for field in dataclasses.fields(default):
        child, value = children.get(field.name), getattr(default, field.name)
        if child is None or field.name in replaced:
            continue
        if dataclasses.is_dataclass(value):
            _fill(child, value)
        elif field.name not in given:
            child.append(cyclopts.Token(keyword=child.name, source="default", implicit_value=value))


def _has_tokens(argument: Any) -> bool:
    return bool(argument.has_tokens) or any(_has_tokens(child) for child in argument.children)


def _raise_on_sigterm() -> None:
    """A verb that is told to end does so by an error, which cleans up behind itself."""

    def raise_(_: int, __: FrameType | None) -> None:
        raise Terminated

    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, raise_)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, ContrastiveWarning):
        print(f"note: {message}", file=sys.stderr)
