"""Animate a face from several references: `python animate.py --refs a.png b.png c.png --driving v.mp4`."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from mrfomm import bundled
from mrfomm.commands.options import add_computing, add_fusion
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media import provenance
from mrfomm.media.crop import FaceFinder, Paste, resized
from mrfomm.media.reading import FOLDER_FPS, FrameSource, is_clip, open_frames
from mrfomm.media.writing import open_sink
from mrfomm.reenactment import live
from mrfomm.reenactment.animator import images_to_array
from mrfomm.reenactment.backends import Weights, load_weights
from mrfomm.reenactment.motion import (
    MOST_STRENGTH,
    MOTION_SUFFIX,
    KeypointArrays,
    Motion,
    Transfer,
    load_motion,
    save_motion,
)
from mrfomm.reenactment.pictures import breakdown_picture, tile
from mrfomm.reenactment.reenactor import Fitted, Reenactor, Write, is_motion_file, open_writers
from mrfomm.reenactment.references import FromClip

OUTPUT = "result.mp4"
REFERENCES = "pictures of the face, or one clip (bundled)"
DRIVING = "clip, folder, motion file or webcam[:N] (bundled)"
SIZES = range(16, 4097)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--refs", nargs="+", metavar="FILE", default=bundled.SAMPLE_REFERENCES, help=REFERENCES)
    add("--count", type=int, metavar="N", help="choose N frames of --refs, a clip (takes pictures)")
    add("--save-refs", metavar="DIR", help="write the chosen frames as PNG (nowhere)")
    add("--driving", metavar="PATH", default=bundled.SAMPLE_DRIVING, help=DRIVING)
    weights_help = "checkpoint, run or exported model (bundled)"
    add("--weights", metavar="CKPT", default=bundled.MODEL, help=weights_help)
    add("-o", "--output", metavar="PATH", help=f".mp4 or .gif file to write, or folder for PNG frames ({OUTPUT})")
    motions = ("relative", "absolute")
    add("--motion", choices=motions, default=motions[0], help="move a reference, or copy poses (%(default)s)")
    add("--adapt-scale", action="store_true", help="scale relative motion by the sizes of the faces")
    strength = f"strength of relative motion, 0 (still) to {MOST_STRENGTH:g} (%(default)s)"
    add("--strength", type=float, default=1, metavar="S", help=strength)
    places = "auto|first|N"
    add("--start", default="auto", metavar=places, help="frame relative motion starts from, from 0 (auto)")
    add_fusion(parser)
    add("--fps", type=float, metavar="N", help="frames per second of a --driving folder, which doesn't say (25)")
    add("--masks", metavar="DIR", help="write each reference's warp, mask and masked result, one picture per frame")
    add("--crop", action="store_true", help="find the face in references and driving and crop to it")
    add("--paste-back", action="store_true", help="put the face back where --crop cut it out")
    add("--size", type=int, metavar="N", help="height of the result in pixels (the model's)")
    add("--save-motion", metavar="FILE", help="write a .npz to be a later --driving (nowhere)")
    add("--side-by-side", action="store_true", help="references, driving and result in one video")
    add("--no-audio", action="store_true", help="leave the driving clip's sound out")
    add("--no-provenance", action="store_true", help="leave out the record that it is synthetic, with its sources")
    add_computing(parser, batch=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    transfer = check(args)
    camera = live.camera_number(args.driving)
    args.output = args.output or OUTPUT
    print(write(args, transfer) if camera is None else show(args, transfer, camera))
    return 0


def check(args: argparse.Namespace) -> Transfer:
    """Refuse arguments that make no sense, before any work; returns how motion is transferred."""
    if args.start not in ("auto", "first") and not args.start.isdecimal():
        raise UserError(f"--start {args.start}: give auto, first or the number of a driving frame (0 is the first)")
    if not 0 <= args.strength <= MOST_STRENGTH:
        raise UserError(
            f"--strength {args.strength}: give a number from 0 to {MOST_STRENGTH:g}; 1 leaves motion as it is"
        )
    if args.motion == "absolute" and (args.adapt_scale or args.start != "auto" or args.strength != 1):
        options = "--adapt-scale, --start and --strength"
        raise UserError(f"{options} are for relative motion; leave them out with --motion absolute")
    check_references(args)
    check_result(args)
    check_places(args)
    if live.camera_number(args.driving) is not None:
        check_live(args)
    start = None if args.start == "auto" else 0 if args.start == "first" else int(args.start)
    anchor = 0 if args.paste_back else None  # else the pose at the start would not fit the picture around it
    return Transfer(args.motion, args.adapt_scale, start, anchor, args.strength)


def check_references(args: argparse.Namespace) -> None:
    """Refuse a clip without --count, and --count without one clip."""
    if args.count is None:
        for path in args.refs:
            if is_clip(path):
                raise UserError(f"--refs {path}: is a clip; give --count N to choose N of its frames")
        if args.save_refs:
            raise UserError(f"--save-refs {args.save_refs}: is for references chosen from a clip; give --count")
    elif args.count < 1 or len(args.refs) != 1:
        raise UserError(f"--count {args.count}: give a number of frames, at least 1, and one clip as --refs")
    elif os.path.splitext(args.save_refs or "")[1]:
        raise UserError(f"--save-refs {args.save_refs}: give a folder, a name without a suffix")


def check_result(args: argparse.Namespace) -> None:
    """Refuse what doesn't go together in the result or in a motion file."""
    if args.paste_back and not args.crop:
        raise UserError("--paste-back: puts back what --crop has cut out; give --crop with it")
    if args.paste_back and (args.size or args.side_by_side):
        raise UserError("--paste-back: the result has the picture's size; leave out --size and --side-by-side")
    if args.size is not None and args.size not in SIZES:
        raise UserError(f"--size {args.size}: give a number of pixels, {SIZES[0]} to {SIZES[-1]}")
    if args.save_motion and not args.save_motion.lower().endswith(MOTION_SUFFIX):
        raise UserError(f"--save-motion {args.save_motion}: give a name that ends with {MOTION_SUFFIX}")
    if is_motion_file(args.driving):
        for option in ("save_motion", "side_by_side", "fps"):
            if getattr(args, option):
                name = option.replace("_", "-")
                raise UserError(f"--{name}: a motion file holds keypoints at their rate and no picture; leave it out")


def check_places(args: argparse.Namespace) -> None:
    """Refuse to write two results into one place, or one over what it is made from."""
    read = [("--driving", args.driving), *(("--refs", path) for path in args.refs)]
    taken = {os.path.realpath(path): option for option, path in read}  # Path.resolve() fails at a circle of links
    written = ("--masks", args.masks), ("--save-refs", args.save_refs), ("--save-motion", args.save_motion)
    for option, path in (("--output", args.output or OUTPUT), *written):
        if path:
            other = taken.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{option} {path}: is {other} too; give it a place of its own")


def check_live(args: argparse.Namespace) -> None:
    """Refuse what makes no sense with a camera."""
    given = {
        "--output": args.output,
        "--masks": args.masks,
        "--paste-back": args.paste_back,
        "--size": args.size,
        "--save-motion": args.save_motion,
        "--no-audio": args.no_audio,
        "--no-provenance": args.no_provenance,
        "--batch": args.batch > 1,
        "--fps": args.fps is not None,
        "--start": args.start.isdecimal(),
    }
    for option in filter(given.get, given):
        raise UserError(f"{option}: a camera's result is shown as it comes, and not written; leave {option} out")


def open_driving(args: argparse.Namespace) -> FrameSource | Motion:
    """The driving clip; says at what rate a folder is taken, and that a motion file has no sound."""
    if is_motion_file(args.driving):
        motion = load_motion(args.driving)
        if not args.no_audio:
            tell(f"{args.driving}: a motion file has no sound, nor has the result")
        return motion
    source = open_frames(args.driving, args.fps)
    if os.path.isdir(args.driving) and args.fps is None:
        tell(f"{args.driving}: taken at {source.fps:g} frames a second, as a folder doesn't say; --fps sets it")
    return source


def make_reenactor(args: argparse.Namespace, weights: Weights) -> Reenactor:
    """The Reenactor that the command line asks for; writes the references chosen for it, and says what to expect where
    the model meets pictures of another kind than it knows."""
    references = args.refs if args.count is None else FromClip(args.refs[0], args.count)
    make = partial(Reenactor, weights, references, crop=args.crop, tell=tell, watch=watch)
    reenactor = make(backend=args.backend, batch=args.batch, breakdown=bool(args.masks))
    if line := weights.expectation([*args.refs, args.driving]):
        tell(line)
    if args.save_refs:
        with open_sink(args.save_refs, FOLDER_FPS) as sink:
            for picture in reenactor.pictures:
                sink.write(picture.cut())
    return reenactor


def write(args: argparse.Namespace, transfer: Transfer) -> str:
    """Animate by a clip; returns the path of the output."""
    source = open_driving(args)
    weights = load_weights(args.weights, args.fusion)
    comment = None if args.no_provenance else provenance.describe(args.refs, args.driving, weights.digest)
    is_silent = args.no_audio or isinstance(source, Motion)
    outputs = [(args.output, None if is_silent else args.driving)] + [(args.masks, None)] * bool(args.masks)
    with weights.context(args.context), open_writers(outputs, source.fps, comment) as (write_result, *write_masks):
        reenactor = make_reenactor(args, weights)
        driving = source if isinstance(source, Motion) else reenactor.fitted(source)
        moves = reenactor.record(driving) if args.save_motion else driving
        keypoints = reenactor.targets(moves, transfer)
        images = with_masks(reenactor, keypoints, *write_masks) if write_masks else reenactor.render(keypoints)
        watched = watch(images, len(keypoints.value), "animating")
        if args.side_by_side and isinstance(driving, Fitted):
            watched = (tile([[*reenactor.references, *pair]], gap=0) for pair in driving.beside(watched))
        finished = finishing(args, reenactor)
        for image in watched:
            write_result(finished(image))
    if args.save_motion and isinstance(moves, Motion):
        save_motion(args.save_motion, moves)
    return args.output


def finishing(args: argparse.Namespace, reenactor: Reenactor) -> Callable[[np.ndarray], np.ndarray]:
    """What is done to each picture before it is written."""
    if args.paste_back:
        return Paste(reenactor.pictures[0])
    return partial(resized, height=args.size) if args.size else lambda image: image


def with_masks(reenactor: Reenactor, keypoints: KeypointArrays, write_masks: Write) -> Iterator[np.ndarray]:
    """Yield the result's frames; each one's breakdown into the references is a picture for ``write_masks``."""
    references = images_to_array(reenactor.references)
    for image, (warped, mask) in reenactor.render_breakdown(keypoints):
        write_masks(breakdown_picture(references, warped, mask, images_to_array([image])[0]))
        yield image


def show(args: argparse.Namespace, transfer: Transfer, number: int) -> str:
    """Animate by a camera, in a window; returns a line of text on how it went."""
    live.check_window()
    weights = load_weights(args.weights, args.fusion)
    capture = live.open_capture(number)
    with weights.context(args.context), contextlib.closing(live.Camera(capture, time.perf_counter)) as camera:
        find_face = FaceFinder() if args.crop else None
        puppet = live.Puppet(make_reenactor(args, weights), transfer, find_face, args.side_by_side, tell)
        with contextlib.closing(live.Window()) as window:
            return live.play(camera, window, puppet, time.perf_counter)


def watch(items: Iterable[np.ndarray], total: int | None, what: str) -> Iterable[np.ndarray]:
    """``items`` with a progress bar on stderr."""
    return tqdm(items, total=total, desc=what, unit="frame")


def tell(line: str) -> None:
    """What was decided on the way goes to stderr, not into a progress bar's line."""
    tqdm.write(line, file=sys.stderr)


def command() -> None:
    """The console command."""
    run_command(main)
