"""Pictures of a face and a driving clip in, frames of the face out: what commands, page, camera and scores build on."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from mrfomm import bundled
from mrfomm.errors import AnyPath
from mrfomm.media import provenance
from mrfomm.media.crop import Framed, crop, find_clip_box, find_image_box
from mrfomm.media.images import fit, read_image, squaring
from mrfomm.media.reading import FOLDER_FPS, open_frames
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.animator import (
    SEARCHING,
    Animator,
    Breakdown,
    Watch,
    array_to_images,
    check_finite,
    find_keypoints,
    images_to_array,
)
from mrfomm.reenactment.backends import Engine, Weights, open_engine
from mrfomm.reenactment.identity import installed, two_people
from mrfomm.reenactment.motion import (
    MOTION_SUFFIX,
    RELATIVE,
    KeypointArrays,
    Motion,
    Move,
    Transfer,
    load_motion,
    probe_picture,
)
from mrfomm.reenactment.references import FromClip, choose_references
from mrfomm.runtime.overlap import read_ahead, write_behind

if TYPE_CHECKING:
    from mrfomm.model import Model

Tell = Callable[[str], object]  # as of Reenactor
Write = Callable[[np.ndarray], object]  # takes uint8 [H,W,3]


@dataclass(frozen=True)
class Fitted:
    """A driving clip as the network takes it: uint8 frames [S,S,3]; every iteration is a new pass.

    source: frames of any size; prepare: makes them [S,S,3].
    """

    source: Iterable[np.ndarray]
    prepare: Callable[[np.ndarray], np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.prepare, self.source)

    def beside(self, images: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs of driving frame and image; the clip is read in a pass of its own."""
        with closing(read_ahead(self)) as frames:
            for image in images:
                yield next(frames), image


@contextmanager
def open_writers(
    outputs: Iterable[tuple[AnyPath, AnyPath | None]], fps: float, comment: str | None
) -> Iterator[list[Write]]:
    """Functions that write frames, for outputs of (path, clip whose sound goes along): each has a thread of its own.

    Arguments and errors are those of ``open_sink``; files appear only if all went well.
    """
    with ExitStack() as stack:
        sinks = [stack.enter_context(open_sink(path, fps, sound, comment)) for path, sound in outputs]
        yield [stack.enter_context(write_behind(sink.write)) for sink in sinks]


def is_motion_file(driving: object) -> TypeGuard[AnyPath]:
    """Whether it is the path of one, by its suffix."""
    return isinstance(driving, (str, os.PathLike)) and os.fspath(driving).lower().endswith(MOTION_SUFFIX)


def path_of(source: object) -> AnyPath | None:
    """The file or folder that pictures or motion come from: itself, if it is a path, or its ``path``; None: no file."""
    return source if isinstance(source, (str, os.PathLike)) else getattr(source, "path", None)


def opened(driving: AnyPath | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """The frames of a driving clip, opened if it is a path."""
    return open_frames(driving) if isinstance(driving, (str, os.PathLike)) else driving


class Reenactor:
    """One face, ready to be animated: its references are read and encoded once.

    All pictures are RGB, uint8 [H,W,3] when they come in and [S,S,3] when they go out; S is ``size``, the model's.

        from mrfomm import Reenactor

        reenactor = Reenactor(references=["front.png", "left.png", "right.png"])
        reenactor.save("result.mp4", "driving.mp4")
        for frame in reenactor.animate("driving.mp4"):
            ...

    Args:
        weights: checkpoint, run folder or exported model; Weights or a Model, which have settled fusion; or an Engine,
            which has settled backend and breakdown too.
        references: 1 or more pictures of the face: paths, or uint8 [H,W,3]; their central square is taken. Or FromClip:
            frames of a clip, chosen for sharpness and different poses.
        fusion: how references are fused, a mode of ``networks.fusion``; None: as the weights were trained.
        crop: find the face in references and driving clips, and crop to it.
        backend: one of ``backends.BACKENDS``.
        batch: driving frames per call of the network; it changes speed and memory only.
        breakdown: enable ``render_breakdown``.
        tell: function of a line of text: where a face was found, or what lost its edges to be square; where motion
            starts; that references seem to show two people, looked for only if it is given.
        watch: function of (items, their number or None, what is done) that yields the items and shows how far they are.

    Attributes:
        size: S. pictures: a Framed for each reference, as it came. references: the same as uint8 [S,S,3].

    Raises:
        UserError: a file is missing or damaged, the weights lack the fusion mode, no face was found to crop to, a clip
            has too few sharp frames.
        ValueError: no reference.
    """

    def __init__(
        self,
        weights: "AnyPath | Weights | Model | Engine" = bundled.MODEL,
        references: Sequence[AnyPath | np.ndarray] | FromClip = bundled.SAMPLE_REFERENCES,
        *,
        fusion: str | None = None,
        crop: bool = False,
        backend: str = "auto",
        batch: int = 1,
        breakdown: bool = False,
        tell: Tell | None = None,
        watch: Watch = lambda items, total, what: items,
    ) -> None:
        if (references.count if isinstance(references, FromClip) else len(references)) < 1:
            raise ValueError("at least one reference is needed")
        self._crop, self._batch, self._tell, self._watch = crop, batch, tell or (lambda line: None), watch
        files = [references.clip] if isinstance(references, FromClip) else references
        self._files = [path_of(each) for each in files]
        names = [str(path or f"reference {number}") for number, path in enumerate(self._files, 1)]
        if not isinstance(references, FromClip):  # first, as reading tells of bad ones soon
            self.pictures = [self._read(*each) for each in zip(references, names)]
            if tell is not None:
                self._tell_of_two_people()
        engine = weights if isinstance(weights, Engine) else open_engine(weights, fusion, backend, breakdown)
        if isinstance(references, FromClip):
            self.pictures = choose_references(references, engine, crop, batch, self._tell, watch)
        self.size, self._graphs, self._digest = engine.size, engine.graphs, engine.digest
        self._squared = squaring(engine.size, self._tell)
        framed = zip(self.pictures, itertools.cycle(names))  # a clip gives several
        self.references = [self._squared(picture.cut(), name) for picture, name in framed]
        self._animator = Animator(engine.graphs, images_to_array(self.references), batch, engine.breakdown)

    @property
    def reference_keypoints(self) -> KeypointArrays:
        """KeypointArrays of the K references."""
        return self._animator.reference_keypoints

    def animate(
        self, driving: AnyPath | Iterable[np.ndarray] | Motion, transfer: Transfer = RELATIVE
    ) -> Iterator[np.ndarray]:
        """Frames uint8 [S,S,3] of the face in the driving clip's motion, one for each of its frames.

        The clip's poses are read at once, as relative motion starts at the best of them; frames are drawn as they are
        asked for.

        Args:
            driving: video, gif or folder of frames; a FrameSource; or uint8 frames [H,W,3], a list if ``crop``. Or a
                motion file (.npz) or Motion, of the same keypoint detector.
            transfer: Transfer: relative motion from the closest poses, if nothing else is said.

        Raises:
            UserError: the clip is missing, damaged or without a face to crop to; motion can't start where it is to.
        """
        clip = load_motion(driving) if is_motion_file(driving) else driving
        keypoints = self.targets(clip if isinstance(clip, Motion) else self.fitted(clip), transfer)
        return iter(self._watch(self.render(keypoints), len(keypoints.value), "animating"))

    def save(
        self,
        output: AnyPath,
        driving: AnyPath | Iterable[np.ndarray] | Motion,
        transfer: Transfer = RELATIVE,
        sound: bool = True,
    ) -> None:
        """Write what ``animate`` gives: .mp4, .gif or a folder for PNG frames, with the driving clip's rate and sound
        (25 frames a second where it has none; motion files are silent), and the record that it is synthetic.

        Raises:
            UserError: as of ``animate``, or the output can't be written.
        """
        comment = provenance.describe(self._files, path_of(driving), self._digest())
        source = load_motion(driving) if is_motion_file(driving) else driving
        if not isinstance(source, Motion):
            source = opened(source)
        outputs = [(output, path_of(driving) if sound and not isinstance(source, Motion) else None)]
        with open_writers(outputs, getattr(source, "fps", FOLDER_FPS), comment) as (write,):
            for frame in self.animate(source, transfer):
                write(frame)

    def follow(self, transfer: Transfer = RELATIVE) -> Callable[[np.ndarray], np.ndarray]:
        """A function for a live driver: a frame uint8 [H,W,3] -> the face's, uint8 [S,S,3]. Relative motion starts at
        the first frame that it is given. Frames are taken as they are, whatever ``crop`` says."""
        move: Move | None = None

        def step(image: np.ndarray) -> np.ndarray:
            nonlocal move
            pose = self.keypoints([self._squared(image, "driving")])
            if move is None:
                move = replace(transfer, start=0).begin(self.reference_keypoints, pose, self._tell)
            return next(self.render(move(pose)))

        return step

    def fitted(self, driving: AnyPath | Iterable[np.ndarray]) -> Fitted:
        """A driving clip, as of ``animate``, as the network takes it: with ``crop``, cut to one box for all frames."""
        source = opened(driving)
        name = str(getattr(source, "path", "driving"))
        if not self._crop:
            return Fitted(source, lambda frame: self._squared(frame, name))
        searched = self._watch(source, getattr(source, "count_hint", None), SEARCHING)
        box = find_clip_box(searched, name, tell=self._tell)
        return Fitted(source, lambda frame: fit(crop(frame, box), self.size))

    def targets(self, driving: Fitted | Motion, transfer: Transfer = RELATIVE) -> KeypointArrays:
        """The poses to draw for a driving clip, KeypointArrays of N: a few hundred bytes a frame.

        Raises:
            UserError: a Motion is of another detector; or as of ``Transfer.begin``.
        """
        poses = self.record(driving).keypoints if isinstance(driving, Motion) else self._poses(driving)
        return transfer.begin(self.reference_keypoints, poses, self._tell)(poses)

    def record(self, driving: Fitted | Motion) -> Motion:
        """The poses of a driving clip, to drive with again: see ``save_motion``. Frames without a rate get 25 a second.
        A Motion comes back as it is, a UserError if it is of another detector."""
        probe = self._probe()
        if isinstance(driving, Motion):
            driving.check_detector(probe)
            return driving
        return Motion(self._poses(driving), getattr(driving.source, "fps", FOLDER_FPS), probe)

    def keypoints(self, frames: Iterable[np.ndarray]) -> KeypointArrays:
        """The poses of N >= 1 frames uint8 [S,S,3], as they are -> KeypointArrays of N."""
        return find_keypoints(self._graphs, frames, self._batch)

    def render(self, keypoints: KeypointArrays) -> Iterator[np.ndarray]:
        """Draw the poses of KeypointArrays: yields uint8 [S,S,3].

        Raises:
            UserError: a picture isn't finite.
        """
        for start in range(0, len(keypoints.value), self._batch):
            yield from array_to_images(self._animator.render(keypoints.frames(start, start + self._batch)))

    def render_breakdown(self, keypoints: KeypointArrays) -> Iterator[tuple[np.ndarray, Breakdown]]:
        """Like ``render``, each picture with its Breakdown: what each of the K references has given to it."""
        for start in range(0, len(keypoints.value), self._batch):
            prediction, breakdown = self._animator.render_breakdown(keypoints.frames(start, start + self._batch))
            check_finite(breakdown.warped)
            yield from zip(array_to_images(prediction), map(Breakdown, *breakdown))

    def _poses(self, driving: Fitted) -> KeypointArrays:
        total = getattr(driving.source, "count_hint", None)
        return self.keypoints(self._watch(read_ahead(driving), total, "reading poses"))

    def _probe(self) -> np.ndarray:
        """What marks the keypoint detector, float32 [n,6]."""
        value, jacobian = self.keypoints([probe_picture(self.size)])
        return np.concatenate([value[0], jacobian[0].reshape(-1, 4)], axis=1)

    def _tell_of_two_people(self) -> None:
        is_known = set(self._files) <= set(bundled.SAMPLE_REFERENCES)  # one person, and loading dlib takes time
        if len(self.pictures) > 1 and not is_known and (describe := installed()):
            names = [str(path or "an array") for path in self._files]
            if line := two_people(names, [picture.cut() for picture in self.pictures], describe):
                self._tell(line)

    def _read(self, picture: AnyPath | np.ndarray, name: str) -> Framed:
        image = picture if isinstance(picture, np.ndarray) else read_image(picture)
        return Framed(image, find_image_box(image, name, self._tell) if self._crop else None)
