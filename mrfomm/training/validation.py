"""How well the model reconstructs held-out clips, and whether it draws finite pictures at all."""

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrfomm.config import Config
from mrfomm.data.clips import Clip, find_clips, open_clip
from mrfomm.data.loader import Batch
from mrfomm.data.sampling import reference_indices, spread
from mrfomm.model.checkpoint import ParameterTree
from mrfomm.reenactment.animator import Animator, images_to_array
from mrfomm.reenactment.nnabla_backend import NnablaGraphs

DRIVING_PER_CLIP = 8  # frames of each held-out clip

HeldOut = tuple[np.ndarray, np.ndarray]  # references uint8 [K,S,S,3], driving uint8 [N,S,S,3] of a clip, RGB


def held_out(folder: Path, config: Config) -> list[HeldOut]:
    """References and driving frames of clips spread over a folder; none where there is no such folder.

    Clips are sorted by person: the first few of VoxCeleb's would be one person's.
    """
    if not config.train.validation_clips:
        return []
    if not folder.is_dir():
        print(f"{folder}: not there, so nothing is validated and there will be no best/", file=sys.stderr)
        return []
    clips = find_clips(folder)
    chosen = [clips[i] for i in spread(len(clips), config.train.validation_clips)]
    shown = tqdm(chosen, "reading held-out clips", unit="clip", leave=False, delay=1)
    return list(validation_pairs(shown, config.data.num_references, DRIVING_PER_CLIP, config.model.image_size))


def validation_pairs(clips: Iterable[Clip], num_references: int, max_per_clip: int, size: int) -> Iterator[HeldOut]:
    """The first, last, middle... frame of every clip as its references, and evenly spaced driving frames.

    Raises:
        BrokenClip: a clip can't be read; a score over fewer clips would not compare.
    """
    for clip in clips:
        frames = open_clip(clip)
        references = frames.read(reference_indices(frames.length, num_references), size)
        yield references, frames.read(spread(frames.length, max_per_clip), size)


def digest_of(clips: Iterable[HeldOut]) -> str:
    """SHA-256 of the pictures of held-out clips, which decides whether two validation errors can be compared."""
    digest = hashlib.sha256()
    for pictures in itertools.chain.from_iterable(clips):
        digest.update(repr(pictures.shape).encode())
        digest.update(pictures.tobytes())
    return digest.hexdigest()


def reconstruction_error(config: Config, tree: ParameterTree, clips: Sequence[HeldOut]) -> float:
    """Mean |prediction - driving| over clips, driven by their own frames."""
    errors = []
    for references, driving in tqdm(clips, "validating", unit="clip", leave=False, delay=1):
        animator = Animator(NnablaGraphs(config.model, tree), images_to_array(references), batch=4)
        frames = images_to_array(driving)
        errors.append(np.abs(animator.render(animator.keypoints(frames)) - frames).mean())
    return float(np.mean(errors))


def is_finite(config: Config, tree: ParameterTree, batch: Batch) -> bool:
    """Whether the model draws a finite picture of a batch's first sample."""
    animator = Animator(NnablaGraphs(config.model, tree), batch.references[0])
    return bool(np.isfinite(animator.render(animator.keypoints(batch.driving[:1]))).all())
