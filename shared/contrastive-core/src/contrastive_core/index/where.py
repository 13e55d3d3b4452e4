"""Conditions on payloads: ``language = "rust" and (stars >= 10 or not archived = true)``.

A condition compares a field with a value: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in ("a", "b")``, ``not in``;
conditions are joined by ``and``, ``or``, ``not`` and parentheses. Values are texts in single or double quotes (a
backslash before a quote or a backslash), numbers, ``true`` and ``false``. ``modality`` names the modality of an item,
every other name a field of the payload. As in SQL, an item that lacks a field meets no condition on it, negated or not.

A condition is read into a tree here and written for an engine from that tree, with every value as a quoted literal;
nothing a user typed reaches an engine as it stands.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Literal

from contrastive_core.errors import InputError

Kind = Literal["text", "number", "boolean"]
Value = str | float | bool
LONGEST = 10_000
DEEPEST = 50

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<operator><=|>=|!=|=|<|>|\(|\)|,)|(?P<name>[A-Za-z_][A-Za-z0-9_]*))""",
    re.VERBOSE | re.DOTALL,
)
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">", "in": "not in", "not in": "in"}
_WORDS = ("and", "or", "not", "in", "true", "false")


@dataclasses.dataclass(frozen=True)
class Condition:
    """One comparison.

    Attributes:
        name: A field.
        operator: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in`` or ``not in``.
        values: What it is compared with; one, except for ``in`` and ``not in``.
    """

    name: str
    operator: str
    values: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Junction:
    """Conditions that all have to hold (``and``), or one of them (``or``)."""

    word: Literal["and", "or"]
    parts: tuple["Where", ...]


Where = Condition | Junction


def parse_where(text: str, fields: Mapping[str, Kind]) -> Where:
    """Read a condition; ``not`` is carried down to the comparisons.

    Args:
        text: What a user typed.
        fields: The fields there are, and what they hold.

    Raises:
        InputError: It cannot be read (the place is named), names no field, or compares a field with a value of another
            kind.

    Example:
        >>> parse_where("not (stars < 3)", {"stars": "number"})
        Condition(name='stars', operator='>=', values=(3.0,))
    """
    reader = _Reader(text)
    tree = reader.junction("or", negated=False, depth=0)
    reader.end()
    _check(tree, {**fields, "modality": "text"})
    return tree


def to_sql(tree: Where, columns: Mapping[str, str]) -> str:
    """The condition as SQL of LanceDB.

    Args:
        tree: A condition.
        columns: Column of every field.
    """
    if isinstance(tree, Junction):
        return "(" + f" {tree.word} ".join(to_sql(part, columns) for part in tree.parts) + ")"
    column, values = f"`{columns[tree.name]}`", [_sql(value) for value in tree.values]
    if tree.operator in ("in", "not in"):
        return f"({column} {tree.operator} ({', '.join(values)}))"
    return f"({column} {tree.operator} {values[0]})"


def to_milvus(tree: Where, columns: Mapping[str, str]) -> str:
    """The condition as an expression of Milvus.

    There ``!=`` and ``not in`` hold where a field is missing, so they are written as what lies on either side.

    Args:
        tree: A condition.
        columns: Expression of every field.
    """
    if isinstance(tree, Junction):
        return "(" + f" {tree.word} ".join(to_milvus(part, columns) for part in tree.parts) + ")"
    column = columns[tree.name]
    if tree.operator == "in":
        return "(" + " or ".join(f"{column} == {_literal(value)}" for value in tree.values) + ")"
    if tree.operator in ("!=", "not in"):
        return "(" + " and ".join(_unequal(column, value) for value in tree.values) + ")"
    return f"({column} {'==' if tree.operator == '=' else tree.operator} {_literal(tree.values[0])})"


class _Reader:
    """Tokens of a condition, and the grammar by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        if len(text) > LONGEST:
            raise self.error(f"it is longer than {LONGEST:,} characters")
        if any("\ud800" <= each <= "\udfff" for each in text):
            raise InputError("the condition is not valid Unicode", where="--where")

    def error(self, why: str) -> InputError:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        return InputError(
            "the condition cannot be read",
            where=f"--where {shown}",
            why=f"at character {self.place + 1}: {why}",
            remedy='write for instance: language = "rust" and (stars >= 10 or kind in ("a", "b"))',
        )

    def peek(self) -> tuple[str, str]:
        """Kind and text of the next token; words of the grammar are their own kind."""
        match = _TOKEN.match(self.text, self.place)
        if match is None:
            rest = self.text[self.place :].strip()
            if rest:
                raise self.error(f"unexpected {rest[:20]!r}")
            return "end", ""
        kind, token = str(match.lastgroup), match.group(str(match.lastgroup))
        return ("word", token.lower()) if kind == "name" and token.lower() in _WORDS else (kind, token)

    def take(self) -> tuple[str, str]:
        kind, token = self.peek()
        match = _TOKEN.match(self.text, self.place)
        self.place = self.place if match is None else match.end()
        return kind, token

    def accept(self, token: str) -> bool:
        if self.peek()[0] in ("word", "operator") and self.peek()[1] == token:
            self.take()
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.error(f"expected {token!r}, got {self.peek()[1] or 'the end'!r}")

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise self.error(f"expected and, or, or the end, got {self.peek()[1]!r}")

    def junction(self, word: Literal["and", "or"], *, negated: bool, depth: int) -> Where:
        def part() -> Where:
            if word == "or":
                return self.junction("and", negated=negated, depth=depth)
            return self.unary(negated=negated, depth=depth)

        parts = [part()]
        while self.accept(word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        opposite: Literal["and", "or"] = "or" if word == "and" else "and"
        return Junction(opposite if negated else word, tuple(parts))

    def unary(self, *, negated: bool, depth: int) -> Where:
        if depth > DEEPEST:
            raise self.error(f"it is nested more than {DEEPEST} deep")
        if self.accept("not"):
            return self.unary(negated=not negated, depth=depth + 1)
        if self.accept("("):
            inner = self.junction("or", negated=negated, depth=depth + 1)
            self.expect(")")
            return inner
        return self.comparison(negated=negated)

    def comparison(self, *, negated: bool) -> Condition:
        kind, name = self.peek()
        if kind != "name":
            raise self.error(f"expected the name of a field, got {name or 'the end'!r}")
        self.take()
        if self.accept("not"):
            self.expect("in")
            operator = "not in"
        elif self.accept("in"):
            operator = "in"
        else:
            kind, operator = self.peek()
            if kind != "operator" or operator not in _NEGATED:
                raise self.error(f"expected = != < <= > >= in, got {operator or 'the end'!r}")
            self.take()
        values = self.values() if operator in ("in", "not in") else (self.value(),)
        return Condition(name, _NEGATED[operator] if negated else operator, values)

    def values(self) -> tuple[Value, ...]:
        self.expect("(")
        values = [self.value()]
        while self.accept(","):
            values.append(self.value())
        self.expect(")")
        return tuple(values)

    def value(self) -> Value:
        kind, token = self.peek()
        if kind == "text":
            self.take()
            return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        if kind == "number":
            if float(token) in (float("inf"), float("-inf")):
                raise self.error(f"{token} is too large a number")
            self.take()
            return float(token)
        if token in ("true", "false"):
            self.take()
            return token == "true"
        raise self.error(f"expected a value (a text in quotes, a number, true or false), got {token or 'the end'!r}")


def _check(tree: Where, fields: Mapping[str, Kind]) -> None:
    if isinstance(tree, Junction):
        for part in tree.parts:
            _check(part, fields)
        return
    if tree.name not in fields:
        raise InputError(
            "no payload has a field of that name",
            where=f"--where {tree.name}",
            why=f"the index knows {', '.join(sorted(fields))}",
        )
    for value in tree.values:
        kind = "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        if kind != fields[tree.name]:
            raise InputError(
                "a field is compared with a value of another kind",
                where=f"--where {tree.name}",
                why=f"it holds {fields[tree.name]}, {value!r} is {kind}",
                remedy="texts stand in quotes, numbers, true and false do not",
            )
        if kind == "boolean" and tree.operator in ("<", "<=", ">", ">="):
            raise InputError("true and false have no order", where=f"--where {tree.name}", remedy="use = or !=")


def _sql(value: Value) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else _literal(value)


def _literal(value: Value) -> str:
    """A literal as JSON writes it."""
    return json.dumps(value, ensure_ascii=False)


def _unequal(column: str, value: Value) -> str:
    if isinstance(value, bool):
        return f"{column} == {_literal(not value)}"
    return f"({column} < {_literal(value)} or {column} > {_literal(value)})"
