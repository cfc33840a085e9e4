"""Animate a face from several references: `python animate.py --refs a.png b.png c.png --driving v.mp4`."""

import argparse
import contextlib
import sys
from functools import partial
from typing import Callable, NamedTuple

import numpy as np
from tqdm import tqdm

from mrfomm import bundled, video
from mrfomm.animation import (
    KeypointArrays,
    array_to_images,
    batches,
    find_start,
    images_to_array,
    load_model,
    movement_scale,
    relative_motion,
)
from mrfomm.commands.backends import BACKENDS, animator_maker
from mrfomm.config import FUSION_MODES
from mrfomm.crop import crop, find_clip_box, find_image_box
from mrfomm.errors import UserError, run_command
from mrfomm.overlap import read_ahead, write_behind
from mrfomm.runtime import CONTEXTS, use_context
from mrfomm.visualize import breakdown_picture, tile


class Driving(NamedTuple):
    """A driving clip as the network takes it. source: FrameSource; prepare: frame of any size -> [S,S,3]."""

    source: video.FrameSource
    prepare: Callable

    def __iter__(self):
        """uint8 frames [S,S,3]; every iteration is a new pass."""
        return map(self.prepare, self.source)


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="animate.py", description=__doc__)
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
        help="video, gif or folder of frames (a bundled one)",
    )
    add("--weights", metavar="CKPT", default=bundled.DEMO_MODEL, help="checkpoint or run folder (the bundled one)")
    add("--output", metavar="PATH", default="result.mp4", help=".mp4, .gif, or a folder for PNG frames (%(default)s)")
    add(
        "--motion",
        choices=("relative", "absolute"),
        default="relative",
        help="move a reference, or copy poses (%(default)s)",
    )
    add("--adapt-scale", action="store_true", help="scale relative motion by the sizes of the faces")
    add("--start", default="auto", metavar="auto|first|N", help="driving frame that relative motion starts from (auto)")
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add("--masks", metavar="DIR", help="write each reference's warp, mask and masked result, a picture a frame")
    add("--crop", action="store_true", help="find the face in references and driving and crop to it")
    add("--side-by-side", action="store_true", help="references, driving and result in one video")
    add("--no-audio", action="store_true", help="leave the driving clip's sound out")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (auto: onnx on a CPU, if installed)")
    add("--batch", type=int, default=1, metavar="N", help="driving frames per call of the network (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    check(args)
    model = load_model(args.weights, args.fusion)
    size = model.config.image_size
    references = [read_reference(path, size, args.crop) for path in args.refs]
    driving = open_driving(args.driving, size, args.crop)
    with use_context(args.context), open_outputs(args, driving.source.fps) as (write, write_masks):
        make_animator = animator_maker(model, args.backend, bool(args.masks))
        animator = make_animator(images_to_array(references), args.batch)
        keypoints = target_keypoints(args, animator, detect(animator, driving, args.batch))
        images = synthesise(animator, keypoints, args.batch, references, write_masks)
        images = progress(images, len(keypoints.value))
        for image in beside(references, driving, images) if args.side_by_side else images:
            write(image)
    print(args.output)
    return 0


def check(args):
    """Refuse arguments that make no sense, before any work."""
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give a number of frames, at least 1")
    if args.start not in ("auto", "first") and not args.start.isdecimal():
        raise UserError(f"--start {args.start}: give auto, first or the number of a driving frame (0 is the first)")
    if args.motion == "absolute" and (args.adapt_scale or args.start != "auto"):
        raise UserError("--adapt-scale and --start are for relative motion; leave them out with --motion absolute")


def read_reference(path, size, cropped):
    """A picture file as uint8 [size,size,3], cropped to its face if asked for."""
    image = video.read_image(path)
    if cropped:
        box = find_image_box(image, path)
        say_crop(path, box)
        image = crop(image, box)
    return video.fit(image, size)


def open_driving(path, size, cropped):
    """The driving clip, cropped to one box for all frames if asked for."""
    source = video.open_frames(path)
    if not cropped:
        return Driving(source, partial(video.fit, size=size))
    box = find_clip_box(source, path)
    say_crop(path, box)
    return Driving(source, lambda frame: video.fit(crop(frame, box), size))


def say_crop(path, box):
    """Tell on stderr what was cropped."""
    print(f"{path}: cropped to {box.size}x{box.size} pixels at ({box.x}, {box.y})", file=sys.stderr)


@contextlib.contextmanager
def open_outputs(args, fps):
    """Functions that write the result's frames and the mask pictures (or None); files appear only if all went well."""
    sound = None if args.no_audio else args.driving
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(video.open_sink(args.masks, fps))] if args.masks else []
        sinks.append(stack.enter_context(video.open_sink(args.output, fps, audio_from=sound)))
        *masks, result = [stack.enter_context(write_behind(sink.write)) for sink in sinks]
        yield result, masks[0] if masks else None


def detect(animator, driving, batch):
    """KeypointArrays of every driving frame (a few hundred bytes a frame)."""
    parts = [
        animator.keypoints(images_to_array(frames))
        for frames in batches(progress(read_ahead(driving), driving.source.count_hint, "reading poses"), batch)
    ]
    return KeypointArrays(*(np.concatenate(part) for part in zip(*parts)))


def target_keypoints(args, animator, driving):
    """The keypoints to synthesise: the driving ones, or their motion transferred to the anchor reference."""
    if args.motion == "absolute":
        return driving
    count = len(driving.value)
    fixed = None if args.start == "auto" else 0 if args.start == "first" else int(args.start)
    if fixed is not None and fixed >= count:
        raise UserError(f"--start {fixed}: the driving clip has {count} frames, 0 to {count - 1}")
    references = animator.reference_keypoints
    start = find_start(references, driving, fixed)
    print(f"motion starts at driving frame {start.frame} from reference {start.anchor + 1}", file=sys.stderr)
    anchor, initial = references.frame(start.anchor), driving.frame(start.frame)
    scale = movement_scale(anchor, initial) if args.adapt_scale else 1.0
    return relative_motion(anchor, driving, initial, scale)


def synthesise(animator, keypoints, batch, references, write_masks):
    """Yield the frames of the result, uint8 [S,S,3]; their breakdown goes to ``write_masks`` unless that is None."""
    inputs = images_to_array(references)
    for start in range(0, len(keypoints.value), batch):
        chunk = keypoints.frames(start, start + batch)
        if write_masks is None:
            prediction = animator.render(chunk)
        else:
            prediction, breakdown = animator.render_breakdown(chunk)
            for warped, mask, image in zip(*breakdown, prediction):
                write_masks(breakdown_picture(inputs, warped, mask, image))
        yield from array_to_images(prediction)


def beside(references, driving, images):
    """Yield pictures of the references, the driving frame and the result in a row."""
    with contextlib.closing(read_ahead(driving)) as frames:
        for image in images:
            yield tile([[*references, next(frames), image]], gap=0)


def progress(items, total, what="animating"):
    """``items`` with a progress bar on stderr."""
    return tqdm(items, total=total, desc=what, unit="frame")


def command():
    """The console command."""
    run_command(main)
