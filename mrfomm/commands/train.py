"""Train a model: `mpirun -n 4 python train.py --config configs/vox-256.yaml`."""

import contextlib
import dataclasses
import itertools
import operator
import sys
from pathlib import Path

import nnabla as nn
import numpy as np

from mrfomm import bundled
from mrfomm.checkpoint import ParameterTree, check_arrays, load_checkpoint, load_resumable, run_of, tidy
from mrfomm.config import check_trainable, load_config, needs_perceptual
from mrfomm.data.clips import find_clips
from mrfomm.data.loader import Loader, check_lengths
from mrfomm.data.sampling import spread
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.h5_file import read_h5
from mrfomm.model import create_parameters
from mrfomm.networks import ops
from mrfomm.networks.fusion import LEARNED_MODES
from mrfomm.networks.perceptual import load_frozen, vgg19_shapes
from mrfomm.runtime.context import CONTEXTS, seed_initialisers
from mrfomm.runtime.processes import first_process_speaks, start_processes
from mrfomm.store import locked
from mrfomm.training.trainer import Trainer
from mrfomm.training.validation import validation_pairs

BUNDLED = "bundled"  # as data.root
DRIVING_PER_CLIP = 8  # frames of each held-out clip in a validation


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--config", metavar="YAML", help="configuration (bundled demo-64)")
    add("--data", metavar="DIR", help="data in FOMM's format, with train/ and test/ (data.root of the configuration)")
    add(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override the configuration: train.batch_size=8",
    )
    add("-o", "--output", metavar="DIR", help="run folder (runs/NAME-OF-CONFIG, numbered if taken)")
    add("--resume", metavar="RUN", help="go on with a run from its newest whole checkpoint, or from RUN/NAME of one")
    add("--init", metavar="CKPT", help="start from the weights of a checkpoint; fusion may be new, it starts neutral")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    args = parser.parse_args(arguments)
    if not (args.config or args.resume):
        args.config = bundled.CONFIGS / "demo-64.yaml"
    return args


def main(arguments=None):
    """Run the command; returns its exit code."""
    with first_process_speaks():
        args = parse_arguments(arguments)
    with start_processes(args.context) as communicator, contextlib.ExitStack() as stack:
        return run(args, communicator, stack)


def run(args, communicator, stack):
    """Train as one of the communicator's processes; returns the exit code. The ExitStack holds the folder's lock."""
    if args.resume and (args.config or args.init or args.output):
        raise UserError("--resume goes on with a run as it is; leave out --config, --init and --output")
    checkpoint = resumable(args.resume, communicator, stack) if args.resume else None
    config = configuration(args, checkpoint)
    initial = load_checkpoint(args.init) if args.init else None
    clips = find_clips(data_root(config) / "train")
    if communicator.rank == 0:
        check_lengths(clips, config.data.num_references)
    perceptual = load_perceptual(config.loss)
    operators = communicator.synchronised(ops.fastest(nn.get_current_context()))
    with ops.implementation(operators), make_loader(config, clips, communicator) as loader:
        seed_initialisers(config.train.seed)
        tree = restored_tree(checkpoint, config) if checkpoint else ParameterTree()
        folder = checkpoint.folder.parent if checkpoint else new_folder(args, config, communicator, stack)
        trainer = Trainer(config, tree, loader, folder, communicator, perceptual, held_out(config))
        if checkpoint:
            trainer.restore(checkpoint)
        elif initial:
            tree.assign(usable(initial, config), args.init, missing_allowed=("fusion/", "discriminator/"))
            say_changes(args.init, initial.config.model, config.model)
        finished = trainer.run()
    if communicator.rank == 0:
        print(folder)
    return 0 if finished else 130


def resumable(run, communicator, stack):
    """The Checkpoint to go on from, whose run folder is locked and tidy from now on."""
    if communicator.rank == 0 and Path(run).is_dir():
        stack.enter_context(locked(run_of(run)))
        tidy(run_of(run))
    communicator.barrier()
    return load_resumable(run)


def restored_tree(checkpoint, config):
    """A ParameterTree with a Checkpoint's parameters; those that the configuration asks for are compared first."""
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(config.model, config.train.discriminator)
    tree.assign(checkpoint.parameters, checkpoint.folder)
    return tree


def configuration(args, checkpoint):
    """The Config of --config, or of the run to resume, with --data and --set on top, and absolute paths."""
    overrides = ([f"data.root={args.data}"] if args.data else []) + args.set
    source = checkpoint.folder / "config.yaml" if checkpoint else args.config
    config = load_config(source, overrides)
    check_trainable(config, source)
    data, loss = config.data, config.loss
    root = data.root if data.root == BUNDLED else str(Path(data.root).absolute())
    weights = loss.perceptual_weights and str(Path(loss.perceptual_weights).absolute())
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, root=root),
        loss=dataclasses.replace(loss, perceptual_weights=weights),
    )


def say_changes(source, trained, config):
    """Say on stderr which values that no parameter's shape shows are others in a ModelConfig than weights know."""
    keys = ("image_size", "keypoints.scale", "keypoints.temperature", "motion.scale", "motion.variance")
    values = [(key, *map(operator.attrgetter(key), (trained, config))) for key in keys]
    changed = [f"model.{key} = {old}, now {new}" for key, old, new in values if old != new]
    if changed:
        print(f"{source}: trained with {'; '.join(changed)}", file=sys.stderr)


def usable(initial, config):
    """The parameters of --init without the fusion's if this run has none, nor a discriminator of another kind."""
    alike = initial.config.model.discriminator == config.model.discriminator
    unwanted = () if config.train.discriminator and alike else ("discriminator/",)
    if config.model.fusion.mode not in LEARNED_MODES:
        unwanted += ("fusion/",)
    return {name: value for name, value in initial.parameters.items() if not name.startswith(unwanted)}


def new_folder(args, config, communicator, stack):
    """The folder of a new run, made and locked now: --output, or the first free runs/NAME, runs/NAME-2 ..."""
    name = Path("runs") / Path(args.config).stem
    numbered = (name if i == 1 else name.with_name(f"{name.name}-{i}") for i in itertools.count(1))
    folder = Path(args.output) if args.output else next(path for path in numbered if not path.exists())
    folder = communicator.share(folder)
    if communicator.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder))
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(
                f"{folder}: already holds a run, or something else; "
                "go on with a run by --resume, or choose another --output"
            )
        tidy(folder)
    communicator.barrier()
    return folder


def data_root(config):
    """The folder with ``train`` and ``test``."""
    return bundled.SAMPLE_DATA if config.data.root == BUNDLED else Path(config.data.root)


def make_loader(config, clips, communicator):
    """The Loader of this process' share of the training data."""
    data, train = config.data, config.train
    if train.batch_size % communicator.size:
        raise UserError(
            f"train.batch_size = {train.batch_size} doesn't divide among {communicator.size} processes; "
            f"set it to a multiple of {communicator.size}"
        )
    return Loader(
        clips,
        data.augmentation,
        size=config.model.image_size,
        num_references=data.num_references,
        batch_size=train.batch_size // communicator.size,
        seed=train.seed,
        num_repeats=data.num_repeats,
        id_sampling=data.id_sampling,
        num_workers=data.workers,
        rank=communicator.rank,
        world=communicator.size,
        max_broken=data.max_broken,
    )


def held_out(config):
    """References and driving frames of clips spread over ``test/``, for validation; none where there is no such folder.

    Clips are sorted by person: the first few of VoxCeleb's would be one person's.
    """
    folder = data_root(config) / "test"
    if not config.train.validation_clips:
        return []
    if not folder.is_dir():
        print(f"{folder}: not there, so nothing is validated and there will be no best/", file=sys.stderr)
        return []
    clips = find_clips(folder)
    clips = [clips[i] for i in spread(len(clips), config.train.validation_clips)]
    pairs = validation_pairs(clips, config.data.num_references, DRIVING_PER_CLIP, config.model.image_size)
    return [(references, driving) for _, references, driving in pairs]


def load_perceptual(loss):
    """The frozen perceptual network's parameters, or None: AlexNet is bundled, VGG19 the user brings."""
    if not needs_perceptual(loss):
        return None
    if loss.perceptual_network == "alexnet":
        with np.load(bundled.LPIPS_ALEXNET) as file:
            return load_frozen({name: file[name] for name in file.files if name.startswith("conv")})
    if not loss.perceptual_weights:
        raise UserError(
            "loss.perceptual_weights: name the VGG19 file made by `python -m mrfomm.convert vgg19.pth -o vgg19.h5`, "
            "or take loss.perceptual_network=alexnet, whose weights are bundled"
        )
    return load_frozen(check_arrays(read_h5(loss.perceptual_weights), vgg19_shapes(), loss.perceptual_weights))


def command():
    """The console command."""
    run_command(main)
