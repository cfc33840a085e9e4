"""Whole sets of clips with labels: what is in them follows from a seed, so they can be made in parallel and resumed."""

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import mrfomm
from mrfomm.errors import AnyPath, UserError
from mrfomm.heads import appearance, motion
from mrfomm.heads.expression import random_performance
from mrfomm.heads.geometry import Template, load_template, sample_shape
from mrfomm.heads.person import Identity, make_person, make_stage, render_frame, texture_size
from mrfomm.heads.textures import make_canvas
from mrfomm.media.writing import open_sink
from mrfomm.provenance import clip_digest
from mrfomm.runtime.threads import one_thread_each
from mrfomm.store import locked, whole_file

PROTOCOLS = ("train", "test", "paper")  # the place here is part of every random seed: only append
HEADER = ("frame", *motion.AXES, "clip")
_PERSON, _BACKDROP, _CLIPS = range(3)  # streams of random numbers of one subject; clip n has stream _CLIPS + n
PAPER_FRAMING = appearance.Framing(fill=0.75, shift=(0.0, 0.0), distance=13.0)


class Settings(NamedTuple):
    """What a set of clips is made of: protocol (one of PROTOCOLS), numbers of subjects, of clips per subject (of no
    effect on the paper's protocol) and of frames per clip, side of the frames in pixels, and seed."""

    protocol: str
    subjects: int
    clips: int
    frames: int
    size: int
    seed: int


class Job(NamedTuple):
    """One clip: target, the video; labels, its csv file; subject and clip, numbers; axis and light: of the paper's
    protocol, else None."""

    target: Path
    labels: Path
    subject: int
    clip: int
    axis: str | None = None
    light: str | None = None


def check(settings: Settings) -> None:
    """Raise a UserError that names the first setting which is out of range."""
    for option, fine, needed in (
        ("--protocol", settings.protocol in PROTOCOLS, f"one of {' '.join(PROTOCOLS)}"),
        ("--subjects", settings.subjects >= 1, "a positive number"),
        ("--clips", settings.clips >= 1, "a positive number"),
        ("--frames", settings.frames >= 2, "a number from 2"),
        ("--size", 32 <= settings.size <= 1024 and settings.size % 2 == 0, "an even number in 32..1024"),
        ("--seed", settings.seed >= 0, "a number from 0"),
    ):
        if not fine:
            raise UserError(f"{option}: give {needed}")


def plan(out: AnyPath, settings: Settings) -> list[Job]:
    """The clips of a set, as a list of Job."""
    out = Path(out)
    if settings.protocol == "paper":
        return list(_plan_paper(out, settings.subjects))
    return list(_plan_clips(out, settings))


def _plan_clips(out: Path, settings: Settings) -> Iterator[Job]:
    """FOMM's format, ``train/IDENTITY#NUMBER.mp4``. It allows no other file beside a clip: labels are in labels/."""
    for subject in range(settings.subjects):
        for clip in range(settings.clips):
            name = f"{settings.protocol}{subject:05d}#{clip}"
            labels = out / "labels" / settings.protocol / f"{name}.csv"
            yield Job(out / settings.protocol / f"{name}.mp4", labels, subject, clip)


def _plan_paper(out: Path, subjects: int) -> Iterator[Job]:
    """The layout of eval.bins. The last subject has one illumination: 5 subjects make the paper's 9 patterns."""
    for subject in range(subjects):
        lights = list(appearance.paper_lights())
        for light in lights[:1] if subject == subjects - 1 and subjects > 1 else lights:
            folder = out / f"s{subject + 1}_{light}"
            for clip, axis in enumerate(motion.AXES):
                yield Job(folder / f"{axis}.mp4", folder / f"{axis}.csv", subject, clip, axis, light)


def make_dataset(out: AnyPath, settings: Settings, workers: int = 1) -> list[Job]:
    """Render all clips of a set that are not there yet, with progress on stderr.

    A clip is done when its labels are there, which are written after the video and hold its digest.
    ``manifest-PROTOCOL.json`` records seed, version and sizes; more subjects or clips may be asked for later.

    Args:
        out: folder.
        settings: Settings.
        workers: processes, at least 1.

    Returns:
        List of the Jobs of the set.

    Raises:
        UserError: a setting out of range, a folder begun with other settings or not writable, or a worker was killed.
    """
    check(settings)
    if workers < 1:
        raise UserError("--workers: give a positive number")
    jobs = plan(out, settings)
    with locked(out, make=True):
        _write_manifest(Path(out) / f"manifest-{settings.protocol}.json", settings)
        missing = [job for job in jobs if not _is_done(job)]
        with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="clip") as progress:
            for done in _render_all(missing, settings, workers):
                progress.update(done)
    return jobs


def _is_done(job: Job) -> bool:
    """Whether a clip is the one that its labels were written for; labels from before they said so are believed."""
    try:
        with open(job.labels, encoding="utf-8", newline="") as file:
            return next(csv.DictReader(file)).get("clip") in (None, clip_digest(job.target))
    except (OSError, ValueError, csv.Error, StopIteration, UserError):
        return False


def _render_all(jobs: Sequence[Job], settings: Settings, workers: int) -> Iterator[int]:
    """Render jobs, those of one subject together; yields the number of clips done since the last time."""
    tasks = [list(group) for _, group in itertools.groupby(jobs, lambda job: job.subject)]
    if workers == 1 or len(tasks) < 2:
        studio = Studio(settings)
        for task in tasks:
            yield from studio.write_clips(task)
        return
    spawn = get_context("spawn")  # forking is unsafe where threads run
    try:
        with ProcessPoolExecutor(min(workers, len(tasks)), spawn) as pool:
            with one_thread_each():  # submitting starts the processes
                futures = [pool.submit(_render_task, task, settings) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:  # leaving the pool waits for what is not begun, too
                    future.cancel()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); use fewer --workers and start again") from error


def _render_task(jobs: Sequence[Job], settings: Settings) -> int:
    return sum(Studio(settings).write_clips(jobs))


class Studio:
    """Renders the clips of one set; holds what is the same for all of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._template = load_template()
        self._canvas = make_canvas(self._template, texture_size(settings.size))

    def identity(self, subject: int) -> Identity:
        """The Identity of a subject's number: protocols draw from different streams, so they share none."""
        return draw_identity(self._template, self._rng(subject, _PERSON))

    def write_clips(self, jobs: Sequence[Job]) -> Iterator[int]:
        """Render clips of one subject, the video first, then its labels; yields 1 after each."""
        person = make_person(self._template, self._canvas, self.identity(jobs[0].subject))
        for job in jobs:
            rng = self._rng(job.subject, _CLIPS + job.clip)
            angles, scene = self._direct(job, rng)
            weights = random_performance(self._template.units.names, self._settings.frames, rng)
            stage = make_stage(person, scene, self._settings.size)
            with open_sink(job.target, motion.FPS) as sink:
                for pose, face in zip(angles, weights):
                    sink.write(render_frame(person, stage, pose, face))
            write_labels(job.labels, angles, clip_digest(job.target))
            yield 1

    def _direct(self, job: Job, rng: np.random.Generator) -> tuple[np.ndarray, appearance.Scene]:
        """The angles [frames,3] and the scene of a clip."""
        if job.axis is None:
            return motion.random_motion(self._settings.frames, rng), appearance.sample_scene(rng)
        backdrop = appearance.sample_backdrop(self._rng(job.subject, _BACKDROP))
        scene = appearance.Scene(appearance.paper_lights()[job.light], backdrop, PAPER_FRAMING)
        return motion.sweep(job.axis, self._settings.frames, rng), scene

    def _rng(self, *key: int) -> np.random.Generator:
        protocol = PROTOCOLS.index(self._settings.protocol)
        return np.random.default_rng([self._settings.seed, protocol, *key])


def draw_identity(template: Template, rng: np.random.Generator) -> Identity:
    """A random person's Identity."""
    shape = sample_shape(template, rng)
    return Identity(shape, appearance.sample_look(shape, rng))


def write_labels(path: Path, angles: np.ndarray, digest: str = "") -> None:
    """Write angles [frames,3] as rows frame,yaw,pitch,roll in degrees, aside, then rename.

    The clip's digest stands in the first row; in the others that column is empty.
    """
    with whole_file(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for number, row in enumerate(angles):
            writer.writerow([number, *(f"{angle:.4f}" for angle in row), "" if number else digest])


def _write_manifest(path: Path, settings: Settings) -> None:
    """Record the settings; refuse a folder that was begun with others."""
    fixed = {"version": mrfomm.__version__, **settings._asdict()}
    growing = ("subjects", "clips") if settings.protocol != "paper" else ()
    if path.exists():
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            smaller = [key for key in growing if begun[key] > fixed[key]]
            other = [key for key in fixed if key not in growing and begun[key] != fixed[key]]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error!r}); delete it and the clips beside it") from error
        for key in smaller + other:
            raise UserError(f"{path}: begun with {key} {begun[key]}, not {fixed[key]}; choose another --output")
    with whole_file(path) as aside:
        aside.write_text(json.dumps(fixed, indent=2) + "\n", encoding="utf-8")
