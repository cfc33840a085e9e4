"""Animate a face from several references: `python animate.py --refs a.png b.png c.png --driving v.mp4`."""

import contextlib
import os
import sys
import time

from tqdm import tqdm

from mrfomm import bundled, provenance
from mrfomm.config import FUSION_MODES
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.crop import FaceFinder
from mrfomm.media.pictures import tile
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.model import load_model, model_digest
from mrfomm.reenactment import live
from mrfomm.reenactment.animator import images_to_array
from mrfomm.reenactment.backends import BACKENDS, animator_maker
from mrfomm.reenactment.pipeline import (
    Follower,
    Transfer,
    detect,
    prepare_driving,
    read_reference,
    synthesise,
    synthesise_with_masks,
    target_keypoints,
)
from mrfomm.runtime.context import CONTEXTS, use_context
from mrfomm.runtime.overlap import read_ahead, write_behind

OUTPUT = "result.mp4"


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--refs",
        nargs="+",
        metavar="FILE",
        default=bundled.SAMPLE_REFERENCES,
        help="pictures of the face (bundled ones)",
    )
    add(
        "--driving",
        metavar="PATH",
        default=bundled.SAMPLE_DRIVING,
        help="video, gif, folder of frames, or webcam[:N] to see it live (a bundled clip)",
    )
    add("--weights", metavar="CKPT", default=bundled.MODEL, help="checkpoint or run folder (the bundled one)")
    add("-o", "--output", metavar="PATH", help=f".mp4, .gif, or a folder for PNG frames ({OUTPUT})")
    add(
        "--motion",
        choices=("relative", "absolute"),
        default="relative",
        help="move a reference, or copy poses (%(default)s)",
    )
    add("--adapt-scale", action="store_true", help="scale relative motion by the sizes of the faces")
    add(
        "--start",
        default="auto",
        metavar="auto|first|N",
        help="number of the frame relative motion starts from (auto)",
    )
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add("--fps", type=float, metavar="N", help="frames per second of a --driving folder, which doesn't say (25)")
    add("--masks", metavar="DIR", help="write each reference's warp, mask and masked result, one picture per frame")
    add("--crop", action="store_true", help="find the face in references and driving and crop to it")
    add("--side-by-side", action="store_true", help="references, driving and result in one video")
    add("--no-audio", action="store_true", help="leave the driving clip's sound out")
    add("--no-provenance", action="store_true", help="leave out the record that it is synthetic, with its sources")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (auto: onnx on a CPU, if installed)")
    add("--batch", type=int, default=1, metavar="N", help="driving frames per call of the network (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    transfer = check(args)
    camera = live.camera_number(args.driving)
    if camera is not None:
        live.check_window()
    model = load_model(args.weights, args.fusion)
    references = [read_reference(path, model.config.image_size, args.crop, tell) for path in args.refs]
    with use_context(args.context):
        if camera is None:
            print(write(args, transfer, model, references))
        else:
            print(show(args, transfer, model, references, camera))
    return 0


def write(args, transfer, model, references):
    """Animate by a clip; returns the path of the output."""
    output = args.output or OUTPUT
    source = open_frames(args.driving, args.fps)
    if os.path.isdir(args.driving) and args.fps is None:
        tell(f"{args.driving}: taken at {source.fps:g} frames a second, as a folder doesn't say; --fps sets it")
    driving = prepare_driving(source, model.config.image_size, args.crop, tell)
    comment = None if args.no_provenance else provenance.describe(args.refs, args.driving, model_digest(model))
    with open_outputs(args, output, driving.source.fps, comment) as (write_result, write_masks):
        animator = animator_maker(model, args.backend, bool(args.masks))(images_to_array(references), args.batch)
        poses = detect(animator, driving, args.batch, progress)
        keypoints = target_keypoints(transfer, animator.reference_keypoints, poses, tell)
        if write_masks:
            images = synthesise_with_masks(animator, keypoints, args.batch, references, write_masks)
        else:
            images = synthesise(animator, keypoints, args.batch)
        images = progress(images, len(keypoints.value), "animating")
        for image in beside(references, driving, images) if args.side_by_side else images:
            write_result(image)
    return output


def show(args, transfer, model, references, number):
    """Animate by a camera, in a window; returns a line of text on how it went."""
    with contextlib.closing(live.Camera(live.open_capture(number), time.perf_counter)) as camera:
        animator = animator_maker(model, args.backend)(images_to_array(references), args.batch)
        puppet = live.Puppet(
            animator,
            Follower(transfer, animator.reference_keypoints, tell),
            model.config.image_size,
            FaceFinder() if args.crop else None,
            references if args.side_by_side else None,
            tell,
        )
        with contextlib.closing(live.Window()) as window:
            return live.play(camera, window, puppet, time.perf_counter)


def check(args):
    """Refuse arguments that make no sense, before any work; returns a Transfer."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a number of frames, at least 1")
    if args.start not in ("auto", "first") and not args.start.isdecimal():
        raise UserError(f"--start {args.start}: give auto, first or the number of a driving frame (0 is the first)")
    if args.motion == "absolute" and (args.adapt_scale or args.start != "auto"):
        raise UserError("--adapt-scale and --start are for relative motion; leave them out with --motion absolute")
    check_places(args)
    if live.camera_number(args.driving) is not None:
        check_live(args)
    start = None if args.start == "auto" else 0 if args.start == "first" else int(args.start)
    return Transfer(args.motion, args.adapt_scale, start)


def check_places(args):
    """Refuse to write two results into one place, or one over what it is made from."""
    read = [("--driving", args.driving), *(("--refs", path) for path in args.refs)]
    taken = {os.path.realpath(path): option for option, path in read}  # Path.resolve() fails at a circle of links
    for option, path in (("--output", args.output or OUTPUT), ("--masks", args.masks)):
        if path:
            other = taken.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{option} {path}: is {other} too; give it a place of its own")


def check_live(args):
    """Refuse what makes no sense with a camera."""
    senseless = {
        "--output": args.output,
        "--masks": args.masks,
        "--no-audio": args.no_audio,
        "--no-provenance": args.no_provenance,
        "--batch": args.batch > 1,
        "--fps": args.fps is not None,
        "--start": args.start.isdecimal(),
    }
    for option in (option for option, given in senseless.items() if given):
        raise UserError(f"{option}: a camera's result is shown as it comes, and not written; leave {option} out")


@contextlib.contextmanager
def open_outputs(args, output, fps, comment):
    """Functions that write the result's frames and the mask pictures (or None); files appear only if all went well."""
    sound = None if args.no_audio else args.driving
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(open_sink(args.masks, fps, comment=comment))] if args.masks else []
        sinks.append(stack.enter_context(open_sink(output, fps, audio_from=sound, comment=comment)))
        *masks, result = [stack.enter_context(write_behind(sink.write)) for sink in sinks]
        yield result, masks[0] if masks else None


def beside(references, driving, images):
    """Yield pictures of the references, the driving frame and the result in a row."""
    with contextlib.closing(read_ahead(driving)) as frames:
        for image in images:
            yield tile([[*references, next(frames), image]], gap=0)


def progress(items, total, what):
    """``items`` with a progress bar on stderr."""
    return tqdm(items, total=total, desc=what, unit="frame")


def tell(line):
    """What was decided on the way goes to stderr."""
    print(line, file=sys.stderr)


def command():
    """The console command."""
    run_command(main)
