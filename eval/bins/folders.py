"""Folders of generated frames scored against recordings: what is compared with what, at which size."""

import hashlib
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrfomm.data.labels import read_csv
from mrfomm.errors import AnyPath, UserError

from ..labels import Advance, Content, Pattern, check_same_size, find_media, pairs_of, read_content
from ..results import progress
from .metric import Axis, Extractor, Images, Score, plan_bins, score

PAIRS = "pairs.csv"  # written by eval.bins.protocol
_NEEDED = ("reference", "driving", "sequence", "generated")

Key = tuple[str, str, str]  # reference pattern, driving pattern, kind of sequence


class PairScore(NamedTuple):
    """A Score and what it is of. reference, driving: names of patterns; kind: of sequence; frames: the generated clip;
    digests: ``digest_of`` it and the true one; size: of the squares that were scored, pixels; own_size: of the frames
    before that, for people."""

    method: str
    reference: str
    driving: str
    kind: str
    score: Score
    frames: str = ""
    digests: tuple[str, ...] = ()
    size: int = 0
    own_size: str = ""


class _Clip(NamedTuple):
    """Frames that a method generated from a driving pattern. angles: of the driving frames, float [N]."""

    method: str
    driving: str
    angles: np.ndarray
    path: Path
    content: Content


def score_folders(
    extractor: Extractor,
    axis: Axis,
    patterns: list[Pattern],
    methods: Mapping[str, AnyPath],
    batch: int = 4,
    size: int | None = None,
) -> list[PairScore]:
    """Score what methods made of every pair of patterns against the recordings of its reference pattern.

    methods: name -> folder of clips or folders of frames ``<reference>/<driving>/<kind>``, or as its ``pairs.csv`` says
    (``eval.bins.protocol``); size: pixels to bring all frames to, those of the methods if None; the others as for
    ``score``. UserError: a clip is missing or damaged, has not its driving sequence's frames, or differs in size.
    """
    true = {(pattern.name, kind): clip for pattern in patterns for kind, clip in pattern.sequences.items()}
    sets = _open_sets(patterns, methods, scaled=size is not None)
    (key, (clip, *_)), *_ = sets.items()
    if clip.content.height != clip.content.width:  # then it can't be what a model makes of the central square
        check_same_size(clip.path, clip.content, true[key].path, true[key].content, scaled=True)
    size = size or min(clip.content.height, clip.content.width)
    jobs = []
    for key, clips in sets.items():
        truth = Images(true[key].own_angles, partial(true[key].content.frames.read, size=size))
        jobs.append((key, truth, [Images(clip.angles, partial(clip.content.frames.read, size=size)) for clip in clips]))
    results = []
    plans = (plan_bins(axis, truth.angles, [images.angles for images in made]) for _, truth, made in jobs)
    with progress(sum(task.images for plan in plans for task in plan), "scoring") as bar:
        for key, truth, generated in jobs:
            digest = digest_of(true[key].content, truth.angles)
            for clip, found in zip(sets[key], score(extractor, axis, truth, generated, batch, bar.update)):
                digests = digest_of(clip.content, clip.angles), digest
                names = clip.method, key[0], clip.driving, key[1]
                results.append(PairScore(*names, found, str(clip.path), digests, size, clip.content.size))
    return results


def _open_sets(
    patterns: list[Pattern], methods: Mapping[str, AnyPath], scaled: bool
) -> dict[tuple[str, str], list[_Clip]]:
    """Every method's clips, decoded once and checked, by the reference pattern and kind they are compared with."""
    pairs = [(reference, *pair) for reference in patterns for pair in pairs_of(reference, patterns)]
    found = {method: places(Path(folder), patterns) for method, folder in methods.items()}
    sets: dict[tuple[str, str], list[_Clip]] = {}
    first: _Clip | None = None
    total = sum(driving.sequences[kind].content.frames.length for _, driving, kind in pairs) * len(methods)
    with progress(total, "checking frames") as bar:
        for method, (reference, driving, kind) in itertools.product(methods, pairs):
            place = found[method][reference.name, driving.name, kind]
            path, content = _open_clip(place, Path(methods[method], PAIRS), driving, kind, bar.update)
            clip = _Clip(method, driving.name, driving.sequences[kind].own_angles, path, content)
            first = first or clip
            check_same_size(path, content, first.path, first.content, scaled)
            sets.setdefault((reference.name, kind), []).append(clip)
    return sets


def places(folder: Path, patterns: list[Pattern]) -> dict[Key, Path]:
    """Where a method's frames of every pair are looked for: by the folder's ``pairs.csv``, or else in
    REFERENCE/DRIVING/KIND. UserError: a row is missing, there twice, or of other recordings."""
    pairs = {(a.name, b.name, kind): (a, b, kind) for a in patterns for b, kind in pairs_of(a, patterns)}
    path = folder / PAIRS
    if not path.exists():
        return {key: Path(folder, *key) for key in pairs}
    found: dict[Key, Path] = {}
    for place, row in read_csv(path, _NEEDED, f"it needs {', '.join(_NEEDED)}; --export-protocol writes one"):
        *names, generated = (row[name] or "" for name in _NEEDED)
        key: Key = (names[0], names[1], names[2])
        if key in found or not generated:
            raise UserError(f"{place}: {'is there twice' if generated else 'nothing in generated'}; mend the table")
        if key in pairs and (row.get("recordings") or "") not in ("", recordings_digest(*pairs[key])):
            raise UserError(f"{place}: made from other recordings; give their --data, or export the protocol again")
        found[key] = folder / generated
    missing = [" ".join(key) for key in pairs if key not in found]
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise UserError(f"{path}: no row for {missing[0]}{more}; a method needs the frames of all pairs")
    return found


def _open_clip(place: Path, table: Path, driving: Pattern, kind: str, advance: Advance) -> tuple[Path, Content]:
    path = find_media(place.parent, place.name)
    if path is None:
        listed = f" of {table}" if table.exists() else ""
        problem = f"no such folder, and no {place.name}.mp4; a method needs the frames of all pairs{listed}"
        raise UserError(f"{place}: {problem}")
    content = read_content(path, advance)
    length, wanted = content.frames.length, driving.sequences[kind].content.frames.length
    if length != wanted:
        raise UserError(f"{path}: {length} frames, its driving sequence has {wanted}; generate it again")
    return path, content


def digest_of(content: Content, angles: np.ndarray) -> str:
    """What a clip with angles is known by."""
    return hashlib.sha256(content.digest.encode() + angles.tobytes()).hexdigest()


def recordings_digest(reference: Pattern, driving: Pattern, kind: str) -> str:
    """What the recordings are known by that a sequence is generated from."""
    digests = reference.sequences["yaw"].content.digest + driving.sequences[kind].content.digest
    return hashlib.sha256(digests.encode()).hexdigest()[:16]
