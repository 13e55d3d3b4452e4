"""What a user did wrong, said so that it can be put right."""

_LONGEST = 1500
"""Characters of one part of a message; a table of a million columns must not scroll the screen away."""


class ContrastiveWarning(UserWarning):
    """Something in the input was repaired or looks wrong, and the work goes on."""


class Terminated(BaseException):  # noqa: N818 - as KeyboardInterrupt, it is no error
    """The process was told to end (SIGTERM)."""


class InputError(Exception):
    """Bad input: a file, an option or a combination of options that cannot be used.

    A command prints the block and exits with status 2; a traceback is kept for bugs.

    Args:
        what: What cannot be done, one sentence.
        where: The file, option or array it was found in.
        why: The reason, with what was found and what was expected.
        remedy: What the user can do about it.
    """

    def __init__(
        self, what: str, *, where: object | None = None, why: str | None = None, remedy: str | None = None
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.why = why
        self.remedy = remedy
        super().__init__(what, self.where, why, remedy)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the parts, so that the error survives the way back from a worker process."""
        return _rebuild, (type(self), self.what, self.where, self.why, self.remedy)

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("where", self.where), ("why", self.why), ("remedy", self.remedy)):
            if text:
                lines.append(f"  {label + ':':<8}{_shortened(text, _LONGEST)}")
        return "\n".join(lines)


def require(fine: bool, option: str, value: object, wanted: str) -> None:
    """Refuse a value out of range.

    Args:
        fine: Whether the value can be used; written as what is allowed (``0 < lr < inf``), so that NaN never passes.
        option: The option as typed, such as ``--optim.lr``.
        value: What was given.
        wanted: What is allowed, such as ``a positive number``.

    Raises:
        InputError: ``fine`` is false.

    Example:
        >>> require(0 < 0.1 < float("inf"), "--optim.lr", 0.1, "a positive number")
    """
    if not fine:
        raise InputError("an option is out of range", where=option, why=f"got {value}", remedy=f"use {wanted}")


def reason(error: BaseException) -> str:
    r"""The first line of what an error says, or its type where it says nothing; fits in a line of a message.

    Example:
        >>> reason(ValueError()), reason(OSError("disk\nlost"))
        ('ValueError', 'disk')
    """
    if isinstance(error, InputError):
        return error.what + (f" ({error.why})" if error.why else "")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, KeyError):
        text = f"it lacks {text}"
    return _shortened(text) or type(error).__name__


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


def _rebuild(kind: type[InputError], what: str, where: str | None, why: str | None, remedy: str | None) -> InputError:
    return kind(what, where=where, why=why, remedy=remedy)
