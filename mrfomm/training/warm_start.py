"""Starting from a checkpoint's weights (``train.py --init``), be they of this model or of one of another size or width.

An array takes the checkpoint's value if it has the same name and shape there. Down blocks are counted from the picture,
up blocks towards it: in a generator of another depth the last up block is the last one's heir, the one before it that
of the one before, and so on.
"""

import dataclasses
import operator
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mrfomm.config import Config, FusionConfig, ModelConfig
from mrfomm.errors import AnyPath, UserError
from mrfomm.model import create_parameters
from mrfomm.model.checkpoint import Checkpoint, ParameterTree, check_arrays
from mrfomm.networks import ops


class Inheritance(NamedTuple):
    """What a new model takes from a checkpoint, and what it doesn't; names of arrays, those of the checkpoint last."""

    taken: dict[str, str]  # new name -> name in the checkpoint
    new: list[str]
    reshaped: list[str]  # there in another shape, so new too
    left: list[str]


def start_from(initial: Checkpoint, tree: ParameterTree, config: Config, source: AnyPath) -> None:
    """Fill a tree, whose parameters exist, from a Checkpoint as far as it goes; stderr tells what is new.

    Raises:
        UserError: the weights aren't those of the checkpoint's own configuration, or its keypoint detector doesn't fit.
    """
    _check_whole(initial, config.model.fusion.mode, source)
    heirs = inheritance(initial, tree, config)
    lost = [name for name in [*heirs.new, *heirs.reshaped] if name.startswith("keypoints/")]
    if lost:
        remedy = "take model.num_keypoints and model.keypoints from its config.yaml, or other weights"
        raise UserError(f"{source}: its keypoint detector doesn't fit the configuration ({lost[0]}); {remedy}")
    parameters = tree.all()
    for name, old in heirs.taken.items():
        parameters[name].d = np.asarray(initial.parameters[old], np.float32)  # nnabla would take float64 over
    say_changes(source, initial.config.model, config.model)
    _say_inheritance(source, heirs)


def inheritance(initial: Checkpoint, tree: ParameterTree, config: Config) -> Inheritance:
    """Which of a tree's parameters take which of a Checkpoint's."""
    heirs, shapes = _heirs(initial, config), {name: value.shape for name, value in tree.all().items()}
    taken = {n: heirs[n] for n, shape in shapes.items() if n in heirs and initial.parameters[heirs[n]].shape == shape}
    reshaped = [name for name in shapes.keys() - taken.keys() if name in heirs]
    left = initial.parameters.keys() - {heirs[name] for name in [*taken, *reshaped]}
    return Inheritance(taken, sorted(shapes.keys() - heirs.keys()), sorted(reshaped), sorted(left))


def _heirs(initial: Checkpoint, config: Config) -> dict[str, str]:
    """Where each array of a Checkpoint goes: new name -> its own; without those that are of no use here.

    A fusion knows its mode and its features, so that another encoder needs a new one; a discriminator knows its kind.
    In an hourglass of another depth the same names are other blocks.
    """
    before, now = initial.config.model, config.model
    deepened = now.generator.down_blocks - before.generator.down_blocks
    fusions = [
        (model.fusion.mode, dataclasses.replace(model.generator, bottleneck_blocks=1, copy=False))
        for model in (before, now)
    ]
    wanted = {
        "fusion": operator.eq(*fusions),
        "motion": before.motion.blocks == now.motion.blocks,
        "keypoints": before.keypoints.blocks == now.keypoints.blocks,
        "discriminator": config.train.discriminator and before.discriminator == now.discriminator,
    }
    names = (name for name in initial.parameters if wanted.get(name.partition("/")[0], True))
    return {re.sub(r"(?<=^generator/up_)\d+", lambda n: str(int(n[0]) + deepened), name): name for name in names}


def _check_whole(initial: Checkpoint, mode: str, source: AnyPath) -> None:
    """Raise UserError unless weights are those of the checkpoint's own configuration: what differs then is meant.

    Unless its fusion is of this mode, nothing of it is taken, and a mode of somebody's own need not be known here.
    """
    own, model, arrays = ParameterTree(), initial.config.model, initial.parameters
    if model.fusion.mode != mode:
        model = dataclasses.replace(model, fusion=FusionConfig("mean"))
        arrays = {name: array for name, array in arrays.items() if not name.startswith("fusion/")}
    with own.scope(), ops.without_values():
        create_parameters(model, any(name.startswith("discriminator/") for name in arrays))
    check_arrays(arrays, {name: value.shape for name, value in own.all().items()}, source)


def _say_inheritance(source: AnyPath, heirs: Inheritance) -> None:
    moved = Counter((_block(name), _block(old)) for name, old in heirs.taken.items() if name != old)
    lines = {
        "from another block": [f"{name} from {old} ({count})" for (name, old), count in moved.items()],
        "new": _grouped(heirs.new),
        "new, of another shape": _grouped(heirs.reshaped),
        "left out": _grouped(heirs.left),
    }
    if any(lines.values()):
        whole = len(heirs.taken) + len(heirs.new) + len(heirs.reshaped)
        print(f"{source}: {len(heirs.taken)} of {whole} arrays carry over", file=sys.stderr)
        for title, blocks in lines.items():
            if blocks:
                print(f"  {title}: {', '.join(blocks)}", file=sys.stderr)


def _grouped(names: Iterable[str]) -> list[str]:
    return [f"{block} ({count})" for block, count in Counter(map(_block, names)).items()]


def _block(name: str) -> str:
    """``generator/up_0`` of ``generator/up_0/conv/W``."""
    return "/".join(name.split("/")[:2])


def say_changes(source: AnyPath, trained: ModelConfig, config: ModelConfig) -> None:
    """Say on stderr which values that no parameter's shape shows are others than weights from a source know."""
    keys = "image_size", "keypoints.scale", "keypoints.temperature", "motion.scale", "motion.variance", "fusion.mode"
    values = [(key, *map(operator.attrgetter(key), (trained, config))) for key in keys]
    changed = [f"model.{key} = {old}, now {new}" for key, old, new in values if old != new]
    if changed:
        print(f"{source}: trained with {'; '.join(changed)}", file=sys.stderr)
