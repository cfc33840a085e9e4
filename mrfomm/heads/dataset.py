"""Whole sets of clips with labels: what is in them follows from a seed, so they can be made in parallel and resumed."""

import csv
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import mrfomm
from mrfomm.errors import AnyPath, UserError
from mrfomm.heads import motion, scene
from mrfomm.heads.person import render_frame
from mrfomm.heads.photographed.assets import check_folder
from mrfomm.heads.photographed.camera import film
from mrfomm.heads.studio import Studio, open_studio
from mrfomm.media.provenance import clip_digest
from mrfomm.media.writing import open_sink
from mrfomm.runtime.threads import one_thread_each
from mrfomm.store import locked, whole_file

PROTOCOLS = ("train", "test", "paper")  # the place here is part of every random seed: only append
HEADER = ("frame", *motion.AXES, "clip")
# streams of random numbers of one subject; clip n has stream _CLIPS + n, and a twin those that a 1 is added to
_PERSON, _BACKDROP, _CLIPS = range(3)
_WHO = attrgetter("subject", "twin")


class SetOptions(NamedTuple):
    """What a set of clips is made of."""

    protocol: str  # one of PROTOCOLS
    subjects: int
    clips: int  # per subject; of no effect on the paper's protocol
    frames: int  # per clip
    size: int  # side of the frames
    seed: int
    assets: AnyPath | None = None  # folder of MakeHuman's assets, for photographed people
    twins: bool = False  # whether each clip has another in which somebody else moves alike (``data.clips.twin_of``)

    def check(self) -> None:
        """Raise a UserError that names the first option which is out of range."""
        for option, fine, needed in (
            ("--protocol", self.protocol in PROTOCOLS, f"one of {' '.join(PROTOCOLS)}"),
            ("--subjects", self.subjects >= 1, "a positive number"),
            ("--clips", self.clips >= 1, "a positive number"),
            ("--frames", self.frames >= 2, "a number from 2"),
            ("--size", 32 <= self.size <= 1024 and self.size % 2 == 0, "an even number in 32..1024"),
            ("--seed", self.seed >= 0, "a number from 0"),
            ("--twins", not (self.twins and self.protocol == "paper"), "protocol train or test, or leave it out"),
        ):
            if not fine:
                raise UserError(f"{option}: give {needed}")

    def stream(self, *key: int) -> np.random.Generator:
        """Random numbers of their own for a subject and one of its streams: protocols share none."""
        return np.random.default_rng([self.seed, PROTOCOLS.index(self.protocol), *key])


class ClipPlan(NamedTuple):
    """One clip of a set."""

    video: Path
    labels: Path
    subject: int
    clip: int
    axis: str = ""  # of the paper's protocol,
    light: str = ""  # likewise
    twin: int = 0  # 1: the twin's

    def is_done(self) -> bool:
        """Whether the video is the one that the labels were written for; old ones that don't say so are believed."""
        try:
            with open(self.labels, encoding="utf-8", newline="") as file:
                return next(csv.DictReader(file)).get("clip") in (None, clip_digest(self.video))
        except (OSError, ValueError, csv.Error, StopIteration, UserError):
            return False


def plan(out: AnyPath, options: SetOptions) -> Iterator[ClipPlan]:
    """The clips of a set in the folder ``out``.

    FOMM's format, ``train/IDENTITY#NUMBER.mp4``, allows no other file beside a clip: labels are in labels/. The paper's
    protocol has the layout of eval.bins; its last subject has one illumination: 5 subjects make the paper's 9 patterns.
    """
    if options.protocol != "paper":
        numbers = range(options.subjects), range(1 + options.twins), range(options.clips)
        for subject, twin, clip in itertools.product(*numbers):
            root, name = Path(out, *["twins"] * twin), f"{options.protocol}/{options.protocol}{subject:05d}#{clip}"
            yield ClipPlan(root / f"{name}.mp4", root / f"labels/{name}.csv", subject, clip, twin=twin)
        return
    patterns = list(itertools.product(range(options.subjects), scene.paper_lights()))
    for subject, light in patterns[: max(2, len(patterns) - 1)]:
        folder = Path(out, f"s{subject + 1}_{light}")
        for clip, axis in enumerate(motion.AXES):
            yield ClipPlan(folder / f"{axis}.mp4", folder / f"{axis}.csv", subject, clip, axis, light)


def make_dataset(out: AnyPath, options: SetOptions, workers: int = 1) -> list[ClipPlan]:
    """Render all clips of a set that are not there yet in ``workers`` processes, with progress on stderr.

    A clip is done when its labels are there, which are written after the video and hold its digest.
    ``manifest-PROTOCOL.json`` records seed, version and sizes; more subjects or clips may be asked for later.

    Raises:
        UserError: an option out of range, bad assets, a folder begun with others or not writable, or a worker was
            killed.
    """
    options.check()
    if workers < 1:
        raise UserError("--workers: give a positive number")
    if options.assets is not None:
        open_studio(options.size, options.assets)  # a bad folder is refused before anything is written
    clips = list(plan(out, options))
    with locked(out, make=True):
        _write_manifest(Path(out) / f"manifest-{options.protocol}.json", options)
        missing = [clip for clip in clips if not clip.is_done()]
        with tqdm(total=len(clips), initial=len(clips) - len(missing), unit="clip") as progress:
            for done in _render_all(missing, options, workers):
                progress.update(done)
    return clips


def _render_all(clips: Sequence[ClipPlan], options: SetOptions, workers: int) -> Iterator[int]:
    """Render clips, those of one subject together; yields the number of clips done since the last time."""
    tasks = [list(group) for _, group in itertools.groupby(clips, _WHO)]
    if workers == 1 or len(tasks) < 2:
        yield from _render_clips(clips, options, open_studio(options.size, options.assets))
        return
    spawn = get_context("spawn")  # forking is unsafe where threads run
    try:
        with ProcessPoolExecutor(min(workers, len(tasks)), spawn) as pool:
            with one_thread_each():  # submitting starts the processes
                futures = [pool.submit(_render_task, task, options) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)  # leaving the pool waits for what is not begun, too
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); use fewer --workers and start again") from error


def _render_task(clips: Sequence[ClipPlan], options: SetOptions) -> int:
    return sum(_render_clips(clips, options, _studio_of(options)))


@functools.lru_cache(maxsize=1)
def _studio_of(options: SetOptions) -> Studio:
    """A worker process' own, which takes seconds: once, not for every subject."""
    return open_studio(options.size, options.assets)


def _render_clips(clips: Sequence[ClipPlan], options: SetOptions, studio: Studio) -> Iterator[int]:
    """Render clips, the video first, then its labels; yields 1 after each."""
    for (subject, twin), own in itertools.groupby(clips, _WHO):
        person = studio.person(options.stream(subject, _PERSON, *[1] * twin))
        for clip in own:
            rng = options.stream(subject, _CLIPS + clip.clip)
            angles, around = _direct(clip, options, rng)
            faces = motion.random_performance(list(studio.template.units), options.frames, rng)
            if twin:
                rng = options.stream(subject, _CLIPS + clip.clip, 1)
                around = scene.sample_scene(rng)
            stage = scene.make_stage(person.bounds, around, options.size)
            frames: Iterator[np.ndarray] = (
                render_frame(person, stage, pose, face) for pose, face in zip(angles, faces)
            )
            if options.assets is not None and not clip.axis:  # the paper's recordings differ in what is measured only
                frames = film(person, stage, zip(angles, faces), rng)
            with open_sink(clip.video, motion.FPS) as sink:
                for frame in frames:
                    sink.write(frame)
            write_labels(clip.labels, angles, clip_digest(clip.video))
            yield 1


def _direct(clip: ClipPlan, options: SetOptions, rng: np.random.Generator) -> tuple[np.ndarray, scene.Scene]:
    """The angles [frames,3] and the scene of a clip."""
    if not clip.axis:
        return motion.random_motion(options.frames, rng), scene.sample_scene(rng)
    backdrop = scene.sample_backdrop(options.stream(clip.subject, _BACKDROP))
    around = scene.Scene(scene.paper_lights()[clip.light], backdrop, scene.PAPER_FRAMING)
    return motion.sweep(clip.axis, options.frames, rng), around


def write_labels(path: Path, angles: np.ndarray, digest: str = "") -> None:
    """Write angles [frames,3] as rows frame,yaw,pitch,roll in degrees, aside, then rename.

    The clip's digest stands in the first row; in the others that column is empty.
    """
    with whole_file(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for number, row in enumerate(angles):
            writer.writerow([number, *(f"{angle:.4f}" for angle in row), "" if number else digest])


def _write_manifest(path: Path, options: SetOptions) -> None:
    """Record the options; refuse a folder that was begun with others."""
    digest = None if options.assets is None else check_folder(options.assets)
    fixed = {"version": mrfomm.__version__, **options._asdict(), "assets": digest}
    growing = ("subjects", "clips", "twins") if options.protocol != "paper" else ()
    if path.exists():
        try:
            older = {"assets": None, "twins": False}  # what is not said in the manifests of older versions
            begun = {**older, **json.loads(path.read_text(encoding="utf-8"))}
            smaller = [key for key in growing if begun[key] > fixed[key]]
            other = [key for key in fixed if key not in growing and begun[key] != fixed[key]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error!r}); delete it and the clips beside it") from error
        for key in smaller + other:
            raise UserError(f"{path}: begun with {key} {begun[key]}, not {fixed[key]}; choose another --output")
    with whole_file(path) as aside:
        aside.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")
