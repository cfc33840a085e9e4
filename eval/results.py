"""What all measurements share: names of methods, JSON, versions, bootstrap intervals, tables, progress."""

import contextlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from tqdm import tqdm

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.store import whole_file

_BACK_ENDS = ("mediapipe", "dlib-bin", "face-recognition-models", "face-alignment")
_DEPENDED_ON = ("mrfomm", "nnabla", "numpy", "opencv-python", "pillow", "av", "onnxruntime", *_BACK_ENDS)
_RESAMPLES_AT_A_TIME = 256  # bounds the memory for long lists of values

Row = Mapping[str, object]  # plain values by name
Numbers = Sequence[float] | np.ndarray
Values = Mapping[Any, Mapping[Any, float]]  # clip or pair, drawn independently -> frame or bin -> value


def named_folder(text: str) -> tuple[str, Path]:
    """The name and the folder of an argument ``NAME=DIR``, or of ``DIR``, which has its own name."""
    name, _, folder = text.partition("=")
    if folder and "/" not in name and not os.path.exists(text):
        return name, Path(folder)
    return os.path.basename(os.path.realpath(text)), Path(text)


def method_names(given: Sequence[str] | None, found: Sequence[str], what: str) -> Sequence[str]:
    """The names of methods: those of --method, or else those ``found``; UserError unless each can be a folder's."""
    names = given or found
    if len(names) != len(found):
        raise UserError(f"--method: {len(names)} names for {len(found)} {what}; give one for each, in their order")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"--method: two methods are called {name}; give each its own name")
        if not name or name.startswith(".") or "/" in name:
            raise UserError(f"--method {name!r}: a name becomes a folder; leave out slashes and leading dots")
    return names


def progress(total: int | None, doing: str, unit: str = "frame") -> "tqdm[NoReturn]":
    """A progress bar that is drawn at every update, but not more than ten times a second."""
    return tqdm(total=total, desc=doing, unit=unit, miniters=1)


def brought(size: str, sizes: Mapping[str, Iterable[str]]) -> str:
    """What of which pictures hadn't the size that all are scored at, in brackets after a blank; "" if all had it."""
    others = {name: " and ".join(sorted(set(found) - {size})) for name, found in sizes.items()}
    named = ", ".join(f"{name} from {found}" for name, found in others.items() if found)
    return f" ({named}: areas are averaged to shrink, pixels interpolated to grow)" if named else ""


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file, aside and then renamed, in which names of files needn't be text; makes its folder."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_rows(path: AnyPath, rows: Iterable[Row]) -> None:
    """Write dictionaries as JSON lines. NaN and infinity have no JSON and raise ValueError."""
    write_text(path, "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: AnyPath) -> list[dict[str, Any]]:
    """Read JSON lines; UserError if the file is missing, or names the line that is no JSON object."""
    check_is_file(path)
    text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    lines = text.split("\n")  # splitlines() splits at U+2028 and the like too
    return [_row(path, number, line) for number, line in enumerate(lines, 1) if line or number < len(lines)]


def _row(path: AnyPath, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON ({error}); write the file again") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is not a JSON object; write the file again")
    return row


def provenance() -> dict[str, str]:
    """Versions of Python and of the installed packages that a number may depend on: name -> version."""
    versions = {"python": platform.python_version()}
    for name in _DEPENDED_ON:
        with contextlib.suppress(metadata.PackageNotFoundError):  # an extra that is not installed had no part in it
            versions[name] = metadata.version(name)
    return versions


class Interval(NamedTuple):
    """A mean and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    values: Numbers, weights: Numbers | None = None, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of independent values with a percentile bootstrap interval (Efron, 1979).

    Args:
        values: [n], n >= 1, drawn independently: of clips or pairs, not of the frames of a clip, which resemble each
            other. With n = 1 the interval has no width and says nothing.
        weights: [n], not negative and not all 0, such as frames in each clip; a resample takes a value with its weight.
        seed, resamples: of the resampling, how many samples of n values are drawn with replacement.
        level: share of the resampled means inside the interval.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or not len(values) or values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape}: give one weight a value, at least one")
    if weights.min() < 0 or weights.sum() <= 0:
        raise ValueError("weights must not be negative, and their sum must be positive")
    rng, means = np.random.default_rng(seed), []
    for start in range(0, resamples, _RESAMPLES_AT_A_TIME):
        drawn = rng.integers(len(values), size=(min(_RESAMPLES_AT_A_TIME, resamples - start), len(values)))  # [R,n]
        total = weights[drawn].sum(axis=1)
        drawn, total = drawn[total > 0], total[total > 0]  # a sample of nothing but zero weights has no mean
        means.append((values * weights)[drawn].sum(axis=1) / total)
    low, high = np.quantile(np.concatenate(means), ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(np.average(values, weights=weights)), float(low), float(high))


def paired_difference(a: Numbers, b: Numbers, weights: Numbers | None = None) -> Interval:
    """``bootstrap_interval`` of a - b, [n] numbers of the same units in the same order, such as clips.

    What the units share, such as an easy clip, cancels: the interval is narrower than those of a and b suggest. Where 0
    lies outside, the methods differ at that level.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} values: a paired difference needs the same units in both")
    return bootstrap_interval(a - b, weights)


def unit_means(values: Values) -> tuple[list[float], list[int]]:
    """The mean of every unit that has values, and how many it has."""
    counted = [list(items.values()) for items in values.values() if items]
    return [float(np.mean(items)) for items in counted], [len(items) for items in counted]


def in_common(first: Values, second: Values) -> tuple[Values, Values]:
    """Both, of what both have: a method that loses the hardest frames must not gain by that."""
    both = {unit: first[unit].keys() & second[unit].keys() for unit in sorted(first.keys() & second.keys())}
    ours, theirs = (
        {unit: {item: side[unit][item] for item in sorted(both[unit])} for unit in both} for side in (first, second)
    )
    return ours, theirs


class Summary(NamedTuple):
    """A mean over units, such as clips, with its interval (None without a value), and how many values they have."""

    mean: float | None
    low: float | None
    high: float | None
    units: int
    values: int


def summary_of(values: Values, subtracted: Values | None = None, weighted: bool = False) -> Summary:
    """Summarise values over their units.

    subtracted: another method's values, to compare over what both have. weighted: units weigh by how many values they
    have.
    """
    if subtracted is not None:
        values, subtracted = in_common(values, subtracted)
    means, counts = unit_means(values)
    if not means:
        return Summary(None, None, None, 0, 0)
    others = [0.0] * len(means) if subtracted is None else unit_means(subtracted)[0]
    return Summary(*paired_difference(means, others, counts if weighted else None), len(means), sum(counts))


def interval_cell(values: Values, subtracted: Values | None = None, weighted: bool = False) -> str | None:
    """``summary_of`` as a table shows it; None without a value, of a single unit that is weighted without interval."""
    mean, low, high, units, _ = summary_of(values, subtracted, weighted)
    if mean is None or low is None or high is None:
        return None
    return f"{mean:.4f}" if weighted and units == 1 else str(Interval(mean, low, high))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, aligned for the eye, of rows of as many cells as the header has.

    Strings stay as they are, floats have four decimals, None and NaN are a dash; columns with numbers go to the right.
    """
    rows = [list(row) for row in rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells for {len(header)} columns: {row}")
    lines = zip(*(_aligned(name, [row[i] for row in rows]) for i, name in enumerate(header)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _aligned(name: str, values: Sequence[object]) -> list[str]:
    """The lines of a column: its name, the rule below, its values."""
    right = any(isinstance(value, (int, float)) for value in values)
    texts = [_text(value) for value in (name, *values)]
    width = max(3, *map(len, texts))
    texts.insert(1, "-" * (width - 1) + (":" if right else "-"))
    return [text.rjust(width) if right else text.ljust(width) for text in texts]


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def command_line(command: str) -> str:
    """How a command is started: in a checkout, or from the wheel, which has this package under another name."""
    return f"python -m eval.{command}" if __package__ == "eval" else f"mrfomm-eval {command}"


def made_by(command: str, arguments: Sequence[object] | None) -> tuple[str, str]:
    """The command line that ``main`` was given and the versions of ``provenance``, for people."""
    words = shlex.join(map(str, sys.argv[1:] if arguments is None else arguments))
    versions = ", ".join(f"{name} {version}" for name, version in provenance().items())
    return f"{command_line(command)} {words}".strip(), versions


def notes_list(lines: Iterable[str], command: str, arguments: Sequence[object] | None) -> str:
    """What has to be known about numbers, as a Markdown list that ends in the command and the versions."""
    line, versions = made_by(command, arguments)
    return "".join(f"- {text}\n" for text in (*lines, f"Command: `{line}`", f"Versions: {versions}"))


def json_text(record: Mapping[str, object], command: str, arguments: Sequence[object] | None) -> str:
    """Results for other programs: one JSON object that ends in the command and the versions."""
    made = {"command": made_by(command, arguments)[0], "versions": provenance()}
    return json.dumps({**record, **made}, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
