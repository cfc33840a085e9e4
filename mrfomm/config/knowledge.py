"""What a model knows: checkpoints and exported models carry it, so that a better model says something else."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_LONGEST = 300  # characters of a text; the files may come from anywhere


class Knowledge(NamedTuple):
    """trained_on: what the pictures showed, and their size. expect: what comes of other pictures. "" where unknown."""

    trained_on: str = ""
    expect: str = ""


def knowledge_of(record: Mapping[str, Any]) -> Knowledge:
    """The Knowledge in a checkpoint's state or an exported model's record; whatever is no text counts as unknown."""
    return Knowledge(*(_line(record.get(name)) for name in Knowledge._fields))


def _line(value: object) -> str:
    """One line without what a terminal would obey."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "".join(filter(str.isprintable, text))[:_LONGEST]
