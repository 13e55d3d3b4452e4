"""What a user did wrong, said so that it can be put right."""


class ContrastiveWarning(UserWarning):
    """Something in the input was repaired or looks wrong, and the work goes on."""


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
                lines.append(f"  {label + ':':<8}{text}")
        return "\n".join(lines)


def _rebuild(kind: type[InputError], what: str, where: str | None, why: str | None, remedy: str | None) -> InputError:
    return kind(what, where=where, why=why, remedy=remedy)
