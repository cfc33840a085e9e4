"""The jobs of the page: pictures and a driving clip in, videos and a film strip out. Nothing here knows of browsers."""

import dataclasses
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mrfomm import provenance
from mrfomm.app.strip import film_strip
from mrfomm.config import FUSION_MODES
from mrfomm.data.sampling import spread
from mrfomm.errors import UserError
from mrfomm.media.pictures import tile
from mrfomm.media.reading import FrameSource, open_frames
from mrfomm.media.writing import open_sink
from mrfomm.model import load_model, model_digest
from mrfomm.networks.fusion import LEARNED_MODES
from mrfomm.reenactment.animator import KeypointArrays, images_to_array
from mrfomm.reenactment.backends import animator_maker
from mrfomm.reenactment.pipeline import Transfer, detect, prepare_driving, read_reference, synthesise, target_keypoints
from mrfomm.runtime.context import use_context
from mrfomm.runtime.overlap import read_ahead, write_behind

MAX_REFERENCES = 8
MAX_SIDE = 4096  # pixels of a driving frame: a few of them are in memory at a time
STRIP_FRAMES = 8


class Limits(NamedTuple):
    """What a visitor may ask for. megabytes: of one upload; frames: of the driving clip; queue: jobs that wait."""

    megabytes: float
    frames: int
    queue: int


class Job(NamedTuple):
    """What to do. references, driving: paths; fusion: mode or None for the trained one; transfer: Transfer."""

    references: tuple[str, ...]
    driving: str
    fusion: str
    transfer: Transfer
    crop: bool


class Result(NamedTuple):
    """beside, alone: videos with sound; strip: PNG, see ``film_strip``; notes: lines of text."""

    beside: Path
    alone: Path
    strip: Path
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BoundedSource:
    """A FrameSource that raises UserError at the first frame beyond ``frames``, or larger than MAX_SIDE."""

    source: FrameSource
    frames: int

    def __post_init__(self):
        if self.source.count_hint is not None and self.source.count_hint > self.frames:
            self._refuse(f"about {self.source.count_hint} frames")

    @property
    def path(self):
        return self.source.path

    @property
    def fps(self):
        return self.source.fps

    @property
    def count_hint(self):
        return self.source.count_hint

    def __iter__(self):
        for number, frame in enumerate(self.source):
            if number == self.frames:
                self._refuse(f"more than {self.frames} frames")
            if max(frame.shape) > MAX_SIDE:
                height, width = frame.shape[:2]
                raise UserError(f"{self.path}: {width}x{height} pixels; make it {MAX_SIDE} or less on each side")
            yield frame

    def _refuse(self, length):
        raise UserError(f"{self.path}: {length}; cut it to {self.frames} ({self.frames / self.fps:.0f} seconds)")


class Studio:
    """Does the jobs, one at a time.

    Args:
        weights: checkpoint or run folder. context, backend: as of animate.py. limits: Limits.

    Raises:
        UserError: the weights can't be loaded.
    """

    def __init__(self, weights, context, backend, limits):
        self.limits = limits
        self._weights = weights
        self._context = context
        self._backend = backend
        self._busy = threading.Lock()
        self.trained_fusion = load_model(weights).config.fusion.mode

    @property
    def fusion_modes(self):
        """The modes that the weights can do, the trained one first."""
        others = [mode for mode in FUSION_MODES if mode not in LEARNED_MODES and mode != self.trained_fusion]
        return [self.trained_fusion, *others]

    def animate(self, job, folder, progress):
        """Do a Job.

        A job that its visitor has stopped goes on until it next looks at ``progress``; the next one waits for that,
        as nnabla's parameter scope is the process's and no thread's own.

        Args:
            job: Job. folder: where the files go.
            progress: function of (items, total or None, what) that yields the items.

        Returns:
            Result.

        Raises:
            UserError: what was asked for is missing, broken or beyond the limits.
        """
        _check(job)
        with self._busy:
            return self._animate(job, folder, progress)

    def _animate(self, job, folder, progress):
        notes = []
        model = load_model(self._weights, job.fusion)
        size = model.config.image_size
        references = [read_reference(path, size, job.crop, notes.append) for path in job.references]
        source = BoundedSource(open_frames(job.driving), self.limits.frames)
        driving = prepare_driving(source, size, job.crop, notes.append)
        with use_context(self._context):
            inputs = images_to_array(references)
            animator = animator_maker(model, self._backend)(inputs, 1)
            poses = detect(animator, driving, 1, progress)
            keypoints = target_keypoints(job.transfer, animator.reference_keypoints, poses, notes.append)
            chosen = spread(len(keypoints.value), STRIP_FRAMES)
            images = progress(synthesise(animator, keypoints, 1), len(keypoints.value), "animating")
            comment = provenance.describe(job.references, job.driving, model_digest(model))
            outputs = [Path(folder) / name for name in ("beside.mp4", "result.mp4")]
            shown = _write_videos(outputs, job.driving, comment, driving, images, chosen)
            analyst = animator_maker(model, self._backend, breakdown=True)(inputs, 1)
            _, breakdown = analyst.render_breakdown(KeypointArrays(*(part[chosen] for part in keypoints)))
        strip = Path(folder) / "strip.png"
        seconds = [number / driving.source.fps for number in chosen]
        Image.fromarray(film_strip(references, shown, breakdown, seconds)).save(strip)
        count = len(keypoints.value)
        notes.insert(0, f"{count} frames at {driving.source.fps:g} per second, {size}x{size} pixels")
        return Result(*outputs, strip, tuple(notes))


def _check(job):
    count = len(job.references)
    if not 1 <= count <= MAX_REFERENCES:
        raise UserError(f"{count or 'no'} pictures; give 1 to {MAX_REFERENCES} of one face")
    if not job.driving:
        raise UserError("no driving clip; give a video, or record one")


def _write_videos(outputs, sound, comment, driving, images, chosen):
    """Write driving frames beside images, and images alone; returns the chosen pairs of (driving frame, image)."""
    fps, chosen, shown = driving.source.fps, set(chosen), []
    with ExitStack() as stack:
        sinks = [stack.enter_context(open_sink(path, fps, sound, comment)) for path in outputs]
        write_beside, write_alone = (stack.enter_context(write_behind(sink.write)) for sink in sinks)
        frames = stack.enter_context(closing(read_ahead(driving)))
        for number, image in enumerate(images):
            frame = next(frames)
            write_beside(tile([[frame, image]], gap=0))
            write_alone(image)
            if number in chosen:
                shown.append((frame, image))
    return shown
