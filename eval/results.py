"""What every measurement is written and summarised with: JSON lines, versions, bootstrap intervals, tables."""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from mrfomm.errors import AnyPath, UserError, check_is_file
from mrfomm.store import whole_file


class _Encoding(TypedDict):
    encoding: str
    errors: str


_PACKAGES = (  # what a number may depend on
    "mrfomm",
    "nnabla",
    "numpy",
    "opencv-python",
    "pillow",
    "av",
    "onnxruntime",
    "mediapipe",
    "dlib-bin",
    "face-recognition-models",
    "face-alignment",
)
ENCODING: _Encoding = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files needn't be text
_RESAMPLES_AT_A_TIME = 256  # bounds the memory for long lists of values

Row = Mapping[str, object]  # plain values by name
Numbers = Sequence[float] | np.ndarray


# Rows: one JSON object a line


def write_rows(path: AnyPath, rows: Iterable[Row]) -> None:
    """Write dictionaries as JSON lines, aside and then renamed.

    Args:
        path: the file; its folder is made if need be.
        rows: iterable of dictionaries of plain values. NaN and infinity have no JSON and raise ValueError.

    Raises:
        UserError: the file can't be written.
    """
    with whole_file(path) as aside:
        aside.write_text("".join(map(_line, rows)), **ENCODING)


def read_rows(path: AnyPath) -> list[dict[str, Any]]:
    """Read JSON lines -> list of dictionaries.

    Raises:
        UserError: missing, or a line is no JSON object; it names the line.
    """
    check_is_file(path)
    lines = Path(path).read_text(**ENCODING).split("\n")  # splitlines() splits at U+2028 and the like too
    return [_row(path, number, line) for number, line in enumerate(lines, 1) if line or number < len(lines)]


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


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
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed had no part in the number
    return versions


# Intervals


class Interval(NamedTuple):
    """A mean and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Numbers, weights: Numbers | None = None, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of independent values with a percentile bootstrap interval (Efron, 1979).

    The values are the units that were drawn independently: clips or pairs, not the frames of a clip, which
    resemble each other.

    Args:
        values: [n] numbers, n >= 1. With n = 1 the interval has no width and says nothing.
        weights: [n] non-negative numbers, such as frames in each clip; None weighs all alike. A resample takes a
            value with its weight.
        seed: of the resampling.
        resamples: how many samples of n values are drawn with replacement.
        level: share of the resampled means inside the interval.

    Returns:
        Interval.

    Raises:
        ValueError: no values, values and weights of different lengths, or a sum of weights that is not positive.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or not len(values) or values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape}: give one weight a value, at least one")
    if weights.min() < 0 or weights.sum() <= 0:
        raise ValueError("weights must not be negative, and their sum must be positive")
    means = _resampled_means(values, weights, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(np.average(values, weights=weights)), float(low), float(high))


def _resampled_means(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Weighted means of ``resamples`` samples with replacement: [n] -> [resamples]."""
    means = []
    for start in range(0, resamples, _RESAMPLES_AT_A_TIME):
        count = min(_RESAMPLES_AT_A_TIME, resamples - start)
        drawn = rng.integers(len(values), size=(count, len(values)))  # [R,n]
        total = weights[drawn].sum(axis=1)
        drawn, total = drawn[total > 0], total[total > 0]  # a sample of nothing but zero weights has no mean
        means.append((values * weights)[drawn].sum(axis=1) / total)
    return np.concatenate(means)


def paired_difference(
    a: Numbers, b: Numbers, weights: Numbers | None = None, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of a - b over units measured with both methods, with its bootstrap interval.

    What the units share, such as an easy clip, cancels: the interval is narrower than those of a and b suggest.

    Args:
        a, b: [n] numbers of the same units in the same order. The rest as in ``bootstrap_interval``.

    Returns:
        Interval: where 0 lies outside, the methods differ at that level.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} values: a paired difference needs the same units in both")
    return bootstrap_interval(a - b, weights, seed, resamples, level)


# Tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: strings as they are, floats with four decimals, None and NaN as a dash; numbers to the right.

    Args:
        header: names of the columns.
        rows: sequences of as many cells.

    Returns:
        str: aligned for the eye, ending in a newline.
    """
    rows = [list(row) for row in rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells for {len(header)} columns: {row}")
    right = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    texts = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in texts)) for i in range(len(header))]
    rule = ["-" * (width - 1) + ":" if flag else "-" * width for width, flag in zip(widths, right)]
    aligned = [
        [text.rjust(width) if flag else text.ljust(width) for text, width, flag in zip(row, widths, right)]
        for row in texts
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (aligned[0], rule, *aligned[1:])]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).replace("|", "\\|")
