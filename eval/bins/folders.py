"""Folders of generated frames scored against recordings: what is compared with what, at which size."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eval.bins.metric import Axis, Extractor, Images, Score, plan_bins, score
from eval.labels import Content, Pattern, check_same_size, find_media, pairs_of, read_content
from mrfomm.errors import AnyPath, UserError


class PairScore(NamedTuple):
    """A Score and what it is of. reference, driving: names of patterns; kind: of sequence; frames: the generated clip;
    digests: ``digest_of`` it and the true one; size: of the squares that were scored, pixels."""

    method: str
    reference: str
    driving: str
    kind: str
    score: Score
    frames: str = ""
    digests: tuple[str, ...] = ()
    size: int = 0


class _Clip(NamedTuple):
    """Frames that a method generated from a driving pattern. angles: of the driving frames, float [N]."""

    method: str
    driving: str
    angles: np.ndarray
    path: Path
    content: Content


def score_folders(
    extractor: Extractor, axis: Axis, patterns: list[Pattern], methods: Mapping[str, AnyPath], batch: int = 4
) -> list[PairScore]:
    """Score what methods made of every pair of patterns against the recordings of its reference pattern.

    methods: name -> folder of clips or folders of frames ``<reference>/<driving>/<kind>``; the others as for ``score``.
    UserError: a clip is missing or damaged, has not its driving sequence's frames, or differs in size.
    """
    true = {(pattern.name, kind): clip for pattern in patterns for kind, clip in pattern.sequences.items()}
    sets = _open_sets(patterns, methods)
    first = next(iter(sets.values()))[0].content
    size = min(first.height, first.width)
    jobs = []
    for key, clips in sets.items():
        truth = Images(true[key].own_angles, partial(true[key].content.frames.read, size=size))
        jobs.append((key, truth, [Images(clip.angles, partial(clip.content.frames.read, size=size)) for clip in clips]))
    results = []
    plans = (plan_bins(axis, truth.angles, [images.angles for images in made]) for _, truth, made in jobs)
    with tqdm(total=sum(task.images for plan in plans for task in plan), desc="scoring", unit="frame") as bar:
        for key, truth, generated in jobs:
            digest = digest_of(true[key].content, truth.angles)
            for clip, found in zip(sets[key], score(extractor, axis, truth, generated, batch, bar.update)):
                digests = digest_of(clip.content, clip.angles), digest
                names = clip.method, key[0], clip.driving, key[1]
                results.append(PairScore(*names, found, str(clip.path), digests, size))
    return results


def _open_sets(patterns: list[Pattern], methods: Mapping[str, AnyPath]) -> dict[tuple[str, str], list[_Clip]]:
    """Every method's clips, decoded once and checked, by the reference pattern and kind they are compared with."""
    pairs = [(reference, *pair) for reference in patterns for pair in pairs_of(reference, patterns)]
    jobs = [(method, *pair) for method in methods for pair in pairs]
    sets: dict[tuple[str, str], list[_Clip]] = {}
    first: _Clip | None = None
    with tqdm(jobs, desc="checking frames", unit="clip") as bar:
        for method, reference, driving, kind in bar:
            path, content = _open_clip(Path(methods[method], reference.name, driving.name), driving, kind)
            clip = _Clip(method, driving.name, driving.sequences[kind].own_angles, path, content)
            first = first or clip
            check_same_size(path, content, first.path, first.content)
            sets.setdefault((reference.name, kind), []).append(clip)
    return sets


def _open_clip(folder: Path, driving: Pattern, kind: str) -> tuple[Path, Content]:
    path = find_media(folder, kind)
    if path is None:
        raise UserError(f"{folder / kind}: no such folder, and no {kind}.mp4; a method needs the frames of all pairs")
    content = read_content(path)
    length, wanted = content.frames.length, driving.sequences[kind].content.frames.length
    if length != wanted:
        raise UserError(f"{path}: {length} frames, its driving sequence has {wanted}; generate it again")
    return path, content


def digest_of(content: Content, angles: np.ndarray) -> str:
    """What a clip with angles is known by."""
    return hashlib.sha256(content.digest.encode() + angles.tobytes()).hexdigest()
