"""How the scores of pairs are shown: rows for files, the paper's table, the notes below it, curves per angle."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure

from ..labels import KINDS, Pattern
from ..results import AnyPath, Values, brought, interval_cell, markdown_table, provenance, summary_of
from .folders import PairScore
from .metric import Axis

PAPER = {  # yaw, pitch, roll; arXiv 2202.10758, LPIPS with AlexNet
    "FOMM": (0.117, 0.131, 0.160),
    "patch-wise": (0.086, 0.108, 0.142),
    "element-wise": (0.085, 0.107, 0.141),
}


def score_rows(pairs: Iterable[PairScore], measure: str, axis: Axis, output: AnyPath) -> Iterator[dict[str, Any]]:
    """A row a pair and sequence: its score (None without a bin), bins, images averaged and left out, and what it is of:
    the path of the frames (from ``output``) and the digests of these and of the truth."""
    settings = {"bin_width": axis.width, "range": axis.limit, "versions": provenance()}
    for pair in pairs:
        score, bins = pair.score, pair.score.bins
        counts = {"bins": len(bins), "true": sum(b.true for b in bins), "generated": sum(b.generated for b in bins)}
        frames = {"frames": os.path.relpath(pair.frames, output), "digests": pair.digests, "size": pair.size}
        found = {measure: score.mean if bins else None, **counts, "dropped": score.dropped}
        yield {**_labels(pair), **found, **frames, **settings}


def bin_rows(pairs: Iterable[PairScore], measure: str) -> Iterator[dict[str, Any]]:
    """A row a bin: the angle of its middle, its score, and how many images each side averaged."""
    for pair in pairs:
        for b in pair.score.bins:
            yield {**_labels(pair), "angle": b.angle, measure: b.distance, "true": b.true, "generated": b.generated}


def _labels(pair: PairScore) -> dict[str, str]:
    return dict(zip(("method", "reference", "driving", "sequence"), pair[:4]))


def values_of(pairs: Iterable[PairScore], method: str, kind: str) -> Values:
    """(reference, driving) -> angle -> score, of the pairs with a bin."""
    ours = (pair for pair in pairs if (pair.method, pair.kind) == (method, kind) and pair.score.bins)
    return {(pair.reference, pair.driving): {b.angle: b.distance for b in pair.score.bins} for pair in ours}


def score_table(pairs: Sequence[PairScore], names: Sequence[str], measure: str, with_paper: bool) -> str:
    """The paper's table: methods by kinds of sequence, with bootstrap intervals over the pairs."""
    rows = [[name, *(interval_cell(values_of(pairs, name, kind)) for kind in KINDS)] for name in names]
    if with_paper:
        for name, values in PAPER.items():
            rows.append([f"{name}, paper (its own recordings)", *(f"{value:.3f}" for value in values)])
    return markdown_table([measure, *KINDS], rows)


def difference_table(pairs: Sequence[PairScore], names: Sequence[str]) -> str:
    """Every two methods, the mean difference over the pairs and bins that both have; empty with one method."""
    rows = []
    for a, b in itertools.combinations(names, 2):
        sides = [(values_of(pairs, a, kind), values_of(pairs, b, kind)) for kind in KINDS]
        rows.append([f"{a} - {b}", *(interval_cell(ours, theirs) for ours, theirs in sides)])
    return markdown_table(["difference", *KINDS], rows) if rows else ""


def summaries(pairs: Sequence[PairScore], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Both tables for other programs: ``scores`` by method and kind of sequence, ``differences`` of two methods."""
    scores, differences = [], []
    for kind in KINDS:
        values = {name: values_of(pairs, name, kind) for name in names}
        scores += [{"method": name, "sequence": kind, **_summary(values[name])} for name in names]
        for a, b in itertools.combinations(names, 2):
            differences.append({"first": a, "second": b, "sequence": kind, **_summary(values[a], values[b])})
    return {"scores": scores, "differences": differences}


def _summary(values: Values, subtracted: Values | None = None) -> dict[str, Any]:
    mean, low, high, units, bins = summary_of(values, subtracted)
    return {"mean": mean, "low": low, "high": high, "pairs": units, "bins": bins}


def notes(
    pairs: Sequence[PairScore], patterns: Sequence[Pattern], data: AnyPath, axis: Axis, faces: bool
) -> Iterator[str]:
    """What has to be known about the numbers. faces: only frames that show one could be scored."""
    scored = [pair for pair in pairs if pair.score.bins]
    lengths = {(p.name, kind): clip.content.frames.length for p in patterns for kind, clip in p.sequences.items()}
    total = sum(lengths[pair.driving, pair.kind] for pair in pairs)
    used = sum(b.generated for pair in scored for b in pair.score.bins)
    lost, size = len(pairs) - len(scored), f"{pairs[0].size}x{pairs[0].size}"
    sizes = {"recordings": {clip.content.size for pattern in patterns for clip in pattern.sequences.values()}}
    for pair in pairs:
        sizes.setdefault(pair.method, set()).add(pair.own_size)
    cut = ", cut to central squares" * any(len(set(text.split("x"))) > 1 for found in sizes.values() for text in found)
    yield "Lower is better; in brackets 95 % bootstrap intervals over pairs (too narrow: pairs share patterns)."
    yield f"{len(patterns)} patterns; pairs scored: {pairs_scored(scored)}; {lost} results without a common bin."
    yield f"Recordings: {data}"
    yield f"Bins of {axis.width:g} degrees, {-axis.limit:g} to {axis.limit:g}."
    yield f"All frames are scored at {size} pixels{brought(size, sizes)}{cut}; LPIPS depends on the size."
    yield f"{used} of {total} generated frames were averaged in a bin that has true ones."
    if faces:
        dropped = sum(pair.score.dropped for pair in pairs)
        yield f"{dropped} true or generated frames, counted in every comparison, show no face and are left out."


def pairs_scored(scored: Iterable[PairScore]) -> str:
    """How many pairs of each kind have a score, method by method where they differ."""
    counts: dict[str, Counter[str]] = {}
    for pair in scored:
        counts.setdefault(pair.method, Counter())[pair.kind] += 1
    texts = {name: ", ".join(f"{kind} {count[kind]}" for kind in KINDS) for name, count in counts.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def draw_curves(file: AnyPath | BinaryIO, pairs: Sequence[PairScore], names: Sequence[str], measure: str) -> None:
    """A PNG with one panel per kind of sequence: the mean over pairs against the angle, one line per method."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS):
        for name in names:
            axes.plot(*curve(pairs, name, kind), marker=".", linewidth=1, label=name)
        axes.set_title(f"{kind} sequences", fontsize=10)
        axes.set_xlabel(f"{kind}, degrees")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"{measure}, mean over pairs (lower is better)", fontsize=9)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=100)


def curve(pairs: Iterable[PairScore], method: str, kind: str) -> tuple[list[float], list[float]]:
    """Angles of the bins that any pair has, ascending, and the mean of the pairs that have them."""
    found: dict[float, list[float]] = {}
    for values in values_of(pairs, method, kind).values():
        for angle, distance in values.items():
            found.setdefault(angle, []).append(distance)
    angles = sorted(found)
    return angles, [float(np.mean(found[angle])) for angle in angles]
