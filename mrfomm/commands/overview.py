"""What a run is going to do, told in a block of lines before it begins."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nnabla as nn

from mrfomm.config import Config
from mrfomm.data.clips import Clip
from mrfomm.data.loader import frame_shape
from mrfomm.data.sampling import spread

LOOKED_AT = 8  # clips


def tell(what: str, text: str) -> None:
    """Print a line of the block on stderr."""
    print(f"{what:<8} {text}", file=sys.stderr)


def counted(count: int | str, thing: str, things: str = "") -> str:
    """``1 clip``, ``2 clips``."""
    return f"{count} {thing if str(count) == '1' else things or thing + 's'}"


def tell_data(config: Config, clips: Sequence[Clip], held_out: int) -> None:
    """Tell people, clips and the sizes of some of them, and whether pictures are made larger than those are."""
    people = len({clip.identity for clip in clips})
    shapes = shapes_of(clips)
    sides = sorted(map(min, shapes.values()))
    sizes = " to ".join(map(str, dict.fromkeys((*sides[:1], *sides[-1:])))) or "unknown"
    of_some = f" (of {counted(len(sides), 'clip')})" if len(sides) < len(clips) else ""
    found = f"{counted(len(clips), 'clip')} of {counted(people, 'person', 'people')}"
    tell("data", f"{found}, {sizes} pixels{of_some}; {held_out} held out")
    size = config.model.image_size
    if sides and sides[0] < size:
        larger = f"model.image_size = {size} is larger than the clips, of which some have {sides[0]} pixels"
        print(f"{larger}: they are enlarged, which shows no more and costs time", file=sys.stderr)
    tell_cut(shapes)


def tell_cut(shapes: Mapping[Clip, tuple[int, int]]) -> None:
    """Tell of a clip that isn't square; of such, the middle square is taken. ``shapes``: as of ``shapes_of``."""
    for clip, (height, width) in shapes.items():
        if height != width:
            cut = f"{clip.path}: {width}x{height} pixels; of clips that aren't square, the middle square is taken"
            print(f"{cut}. `python -m mrfomm.data.prepare` cuts videos to the face", file=sys.stderr)
            return


def shapes_of(clips: Sequence[Clip]) -> dict[Clip, tuple[int, int]]:
    """Height and width in pixels of some clips' frames, of those that can be read."""
    found = {clip: frame_shape(clip) for clip in (clips[i] for i in spread(len(clips), LOOKED_AT))}
    return {clip: shape for clip, shape in found.items() if all(shape)}


def tell_place(processes: int, folder: Path) -> None:
    """Tell where it computes and which folder takes the results."""
    on_gpu = nn.get_current_context().backend[0].startswith("cudnn")
    threads = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    device = "GPU" if on_gpu else f"CPU, {counted(threads, 'thread')}"
    tell("device", device + (f" in each of {processes} processes" if processes > 1 else ""))
    tell("folder", str(folder))


def tell_plan(config: Config, parameters: int, steps_per_epoch: int, done: int) -> None:
    """Tell what is trained, and for how long; ``parameters``: numbers in all of them, ``done``: steps."""
    model, train = config.model, config.train
    stage = ", discriminator" if config.train.discriminator else ""
    kind = f"{model.image_size} pixels, K = {config.data.num_references}, fusion {model.fusion.mode}{stage}"
    tell("model", f"{kind}; {parameters / 1e6:.2f} million parameters")
    steps = f"{train.epochs * steps_per_epoch} of {train.batch_size} samples, in {counted(train.epochs, 'epoch')}"
    tell("steps", steps + (f"; {done} are done" if done else ""))
