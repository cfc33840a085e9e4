"""How the scores of runs are shown: one row per method and measure for a file, the tables, the notes below them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ..results import Interval, Values, brought, interval_cell, markdown_table, provenance, summary_of
from .metrics import AKD_SIZE, Column, columns_of
from .runs import Method

PAPER_LANDMARKS, PAPER_IDENTITY = "face_alignment", "openface"
PAPER = {  # VoxCeleb1, arXiv 2202.10758: PAPER_COLUMNS
    "FOMM": (0.043, 1.294, 0.140),
    "pseudo multi-reference FOMM": (0.033, 1.191, 0.093),
    "patch-wise": (0.031, 1.159, 0.084),
    "element-wise": (0.032, 1.156, 0.078),
}
DROPPED = {"psnr": "equal to the truth", "gradient": "the truth is of one colour"}  # why a frame has no number
PAPER_COLUMNS = columns_of([PAPER_LANDMARKS], [PAPER_IDENTITY])[:3]  # L1D, AKD, AED


def values_of(method: Method, key: str) -> Values:
    """Clip -> frame -> value of a measure, of the frames that have one."""
    frames = ((clip, [row for row in rows if row[key] is not None]) for clip, rows in method.rows.items())
    return {clip: {row["frame"]: row[key] for row in rows} for clip, rows in frames}


def summary_rows(methods: Sequence[Method], columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    """A row for every method and column: the mean over frames, its interval over clips, and what it rests on."""
    versions = provenance()
    for method, column in itertools.product(methods, columns):
        names = {"method": method.name, "measure": column.key, "backend": column.backend}
        *interval, clips, frames = summary_of(values_of(method, column.key), weighted=True)
        dropped = sum(map(len, method.rows.values())) - frames
        rests_on = {"clips": clips, "frames": frames, "dropped": dropped, "size": method.size}
        bounds = dict(zip(Interval._fields, interval))
        yield {**names, **bounds, **rests_on, "settings": method.settings, "versions": versions}


def difference_rows(methods: Sequence[Method], columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    """A row for every two methods and column: the mean difference over the frames that both have."""
    for (first, second), column in itertools.product(itertools.combinations(methods, 2), columns):
        sides = values_of(first, column.key), values_of(second, column.key)
        *interval, clips, frames = summary_of(*sides, weighted=True)
        names = {"first": first.name, "second": second.name, "measure": column.key, "backend": column.backend}
        yield {**names, **dict(zip(Interval._fields, interval)), "clips": clips, "frames": frames}


def score_table(methods: Sequence[Method], columns: Sequence[Column]) -> str:
    """Methods by measures, with the paper's rows; its AKD and AED stand in the columns of its own back ends."""
    shown = [*columns, *(column for column in PAPER_COLUMNS if column not in columns)]
    rows = []
    for method in methods:
        cells = [interval_cell(values_of(method, c.key), weighted=True) if c in columns else None for c in shown]
        rows.append([method.name + _clips_if_unequal(methods, len(method.rows)), *cells])
    for name, values in PAPER.items():
        known = {column: f"{value:.3f}" for column, value in zip(PAPER_COLUMNS, values)}
        rows.append([f"{name}, paper (VoxCeleb1)", *(known.get(column) for column in shown)])
    return markdown_table(["method", *(column.title for column in shown)], rows)


def difference_table(methods: Sequence[Method], columns: Sequence[Column]) -> str:
    """Every two methods: the mean difference over the frames that both have; empty with one method."""
    rows = []
    for first, second in itertools.combinations(methods, 2):
        sides = [(values_of(first, column.key), values_of(second, column.key)) for column in columns]
        cells = [interval_cell(ours, theirs, weighted=True) for ours, theirs in sides]
        clips = _clips_if_unequal(methods, len(first.rows.keys() & second.rows.keys()))
        rows.append([f"{first.name} - {second.name}{clips}", *cells])
    return markdown_table(["difference", *(column.title for column in columns)], rows) if rows else ""


def _clips_if_unequal(methods: Sequence[Method], count: int) -> str:
    """A number of clips for the name of a row, if rows are not all of the same clips."""
    return f" ({_counted(count, 'clip')})" if len({frozenset(method.rows) for method in methods}) > 1 else ""


def notes(methods: Sequence[Method], columns: Sequence[Column]) -> Iterator[str]:
    """What has to be known about the numbers."""
    size = methods[0].size
    scaled = f", landmarks scaled by {AKD_SIZE}/{size}" if size != AKD_SIZE else ""
    yield "Means over frames; in brackets 95 % bootstrap intervals over clips (one clip has none)."
    yield "The paper's numbers are of another data set, VoxCeleb1 at 256 pixels."
    akd = f"AKD is the mean difference of landmark coordinates in pixels at 256{scaled}"
    yield f"{sizes(methods)} {akd}; AED the sum of squared differences."
    yield "PSNR and SSIM (Wang et al. 2004, mean over colour channels) are higher for better frames, distances lower."
    yield "Gradient ratio, mean magnitude in the frame by that in its truth: 1 is as sharp, less is blurred or paler."
    if _clips_if_unequal(methods, 0):
        yield "Rows are of different clips: only differences, over the clips that both have, compare methods."
    for method in methods:
        yield from _notes_of_method(method, columns)


def sizes(methods: Sequence[Method]) -> str:
    """At which size all frames are scored, and which ones had another."""
    size = str(methods[0].size)
    sides = {method.name: {str(made.side) for made in method.made} for method in methods}
    return f"Images of {size} pixels{brought(size, sides)}, true frames brought to it."


def _notes_of_method(method: Method, columns: Sequence[Column]) -> Iterator[str]:
    total = sum(map(len, method.rows.values()))
    counts = f"{_counted(total, 'frame')} of {_counted(len(method.rows), 'clip')}"
    yield f"{method.name}: {counts} in {next(iter(method.truth.values())).parent}, {method.remark}."
    for column in columns:
        dropped = total - summary_of(values_of(method, column.key)).values
        if dropped and "euclidean" not in column.key:  # these share their frames with AKD and AED
            reason = DROPPED.get(column.key, "no face in the true or the rebuilt frame")
            yield f"{method.name}, {column.title}: {dropped} of {total} frames dropped ({reason})."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
