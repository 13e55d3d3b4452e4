"""Banks of attributes: what can be seen in a picture, one phrase each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from contrastive_core.errors import InputError
from contrastive_core.files import read_json, read_lines, reading

WORDS = tuple(
    """
    red, orange, yellow, green, blue, purple, pink, brown, black, white, gray, golden, silver, beige, turquoise, dark,
    bright, pale, colorful, striped, spotted, checkered, transparent, shiny, metallic, wooden, plastic, glass, stone,
    leather, fabric, furry, feathered, scaly, fluffy, smooth, rough, round, square, triangular, rectangular, oval,
    curved, straight, pointed, flat, thick, thin, long, short, tall, wide, narrow, small, large, tiny, giant, open,
    closed, empty, full, broken, wet, dry, frozen, burning, hot, cold, melted, folded, hanging, standing, sitting,
    lying, walking, running, flying, swimming, jumping, dancing, sleeping, eating, drinking, smiling, laughing, crying,
    angry, sad, happy, surprised, scared, tired, sick, kissing, winking, young, old, male, female, human, animal, bird,
    fish, insect, plant, flower, tree, leafy, fruit, vegetable, baked, cooked, sweet, spicy, liquid, container, vehicle,
    wheeled, boat, aircraft, building, house, tower, natural, mountain, sea, sky, cloudy, rainy, snowy, sunny, night,
    star, moon, electronic, screen, musical, sporty, ball, clothing, worn, jewelry, tool, weapon, sharp, office, paper,
    book, written, number, arrow, geometric, heart, religious, medical, money, food, kitchen, hand, finger, body, face,
    hair, glasses, hat, crowned, armed, magical, mechanical, clock, light, sound
    """.replace("\n", " ").split(",")
)
"""The package's own bank: colours, materials, shapes, sizes, states, motions, expressions, kinds, settings."""

ATTRIBUTES = tuple(" ".join(word.split()) for word in WORDS)
TEMPLATE = "a photo of something {a}"


@dataclasses.dataclass(frozen=True)
class Bank:
    """Attributes and the sentence they are put into.

    Attributes:
        phrases: All different.
        template: Holds ``{a}`` once.
        source: File they were read from, or ``built-in``.
    """

    phrases: tuple[str, ...]
    template: str = TEMPLATE
    source: str = "built-in"

    def prompts(self) -> list[str]:
        """One sentence an attribute."""
        return [self.template.replace("{a}", phrase) for phrase in self.phrases]


def read_bank(path: Path | None, template: str = TEMPLATE) -> Bank:
    """Read a bank; the package's own where no file is named.

    Args:
        path: Text, one phrase a line, ``#`` begins a comment; or JSON of phrases to numbers, as VAW's
            ``attribute_index.json``, in the order of the numbers.
        template: Sentence with ``{a}``.

    Raises:
        InputError: An unreadable file, an empty or repeated phrase (with its line), fewer than two phrases, or a
            template without ``{a}``.
    """
    if template.count("{a}") != 1:
        raise InputError("the template holds {a} once", where="--template", why=f"got {template!r}")
    if path is None:
        return Bank(ATTRIBUTES, template)
    lines = _json_phrases(path) if path.suffix == ".json" else _lines(path)
    seen: dict[str, int] = {}
    for number, phrase in lines:
        key = phrase.casefold()
        if not key:
            raise InputError("an attribute is empty", where=f"{path}, line {number}", remedy="delete the line")
        if key in seen:
            raise InputError(
                "an attribute occurs twice",
                where=f"{path}, line {number}",
                why=f"{phrase!r} stands in line {seen[key]} already",
                remedy="delete one of them",
            )
        seen[key] = number
    if len(lines) < 2:
        raise InputError("a bank holds at least two attributes", where=path, why=f"there are {len(lines)}")
    return Bank(tuple(phrase for _, phrase in lines), template, str(path))


def label_overlap(bank: Bank, classes: Sequence[str]) -> tuple[str, ...]:
    """Attributes that are also names of classes, or words of them: they leak what an evaluation asks for."""
    names = {name.casefold().strip() for name in classes}
    words = {word for name in names for word in name.replace("-", " ").replace("_", " ").replace("&", " ").split()}
    singular = {word.removesuffix("s") for word in names | words}
    return tuple(p for p in bank.phrases if p.casefold() in names | words | singular)


def _lines(path: Path) -> list[tuple[int, str]]:
    numbered = [(number, " ".join(line.split())) for number, line in enumerate(read_lines(path), 1)]
    while numbered and not numbered[-1][1]:  # blank lines at the end of a file are no attributes
        numbered.pop()
    return [(number, phrase) for number, phrase in numbered if not phrase.startswith("#")]


def _json_phrases(path: Path) -> list[tuple[int, str]]:
    values = read_json(path)
    with reading(path, "the attributes cannot be read", "give an object of phrases to whole numbers, all different"):
        if not isinstance(values, dict):
            raise ValueError("a mapping of phrases to numbers is expected")
        if not all(type(number) is int for number in values.values()) or len(set(values.values())) != len(values):
            raise ValueError("its numbers are not whole, or one stands twice")
    ordered = sorted(values, key=values.__getitem__)
    return [(number, " ".join(phrase.split())) for number, phrase in enumerate(ordered, 1)]
