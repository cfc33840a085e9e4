"""Train a model: `mpirun -n 4 python train.py --config configs/vox-256.yaml`."""

import argparse
import itertools
from pathlib import Path

import nnabla as nn
import numpy as np

from mrfomm import bundled
from mrfomm.checkpoint import ParameterTree, check_arrays, load_checkpoint, load_resumable
from mrfomm.config import check_trainable, config_to_yaml, load_config
from mrfomm.data.clips import find_clips
from mrfomm.data.loader import Loader
from mrfomm.data.validation import validation_pairs
from mrfomm.errors import UserError, run_command
from mrfomm.h5_file import read_h5
from mrfomm.networks import ops
from mrfomm.networks.fusion import LEARNED_MODES
from mrfomm.networks.perceptual import load_frozen, vgg19_shapes
from mrfomm.runtime import CONTEXTS, seed_initialisers, start_processes
from mrfomm.training import Trainer

DRIVING_PER_CLIP = 8  # frames of each held-out clip in a validation


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--config", metavar="YAML", default=bundled.CONFIGS / "demo-64.yaml", help="configuration (%(default)s)")
    add("--data", metavar="DIR", help="data in FOMM's format, with train/ and test/ (data.root of the configuration)")
    add(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override the configuration: train.batch_size=8",
    )
    add("--output", metavar="DIR", help="run folder (runs/NAME-OF-CONFIG, numbered if taken)")
    add("--resume", metavar="RUN", help="go on with a run from its newest whole checkpoint")
    add("--init", metavar="CKPT", help="start from the weights of a checkpoint; fusion may be new, it starts neutral")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    with start_processes(args.context) as communicator:
        return run(args, communicator)


def run(args, communicator):
    """Train as one of the communicator's processes; returns the exit code."""
    if args.resume and (args.init or args.output):
        raise UserError("--resume goes on with a run as it is; leave out --init and --output")
    checkpoint = load_resumable(args.resume) if args.resume else None
    config = configuration(args, checkpoint)
    initial = load_checkpoint(args.init) if args.init else None
    clips = find_clips(data_root(config) / "train")
    perceptual = load_perceptual(config.loss)
    operators = communicator.synchronised(ops.fastest(nn.get_current_context()))
    with ops.implementation(operators), make_loader(config, clips, communicator) as loader:
        seed_initialisers(config.train.seed)
        tree = ParameterTree()
        folder = run_folder(args, config, communicator)
        trainer = Trainer(config, tree, loader, folder, communicator, perceptual, held_out(config))
        if checkpoint:
            trainer.restore(checkpoint)
        elif initial:
            tree.assign(usable(initial, config), args.init, missing_allowed=("fusion/", "discriminator/"))
        finished = trainer.run()
    if communicator.rank == 0:
        print(folder)
    return 0 if finished else 130


def configuration(args, checkpoint):
    """The Config of --config, or of the run to resume, with --data and --set on top."""
    overrides = ([f"data.root={args.data}"] if args.data else []) + args.set
    source = checkpoint.folder / "config.yaml" if checkpoint else args.config
    config = load_config(source, overrides)
    check_trainable(config, source)
    return config


def usable(initial, config):
    """The parameters of --init, without the discriminator's and the fusion's where this run has none."""
    unwanted = () if config.train.discriminator else ("discriminator/",)
    if config.model.fusion.mode not in LEARNED_MODES:
        unwanted += ("fusion/",)
    return {name: value for name, value in initial.parameters.items() if not name.startswith(unwanted)}


def run_folder(args, config, communicator):
    """The folder of the run, made now: --resume, --output, or the first free runs/NAME, runs/NAME-2 ..."""
    if args.resume:
        return Path(args.resume)
    name = Path("runs") / Path(args.config).stem
    numbered = (name if i == 1 else name.with_name(f"{name.name}-{i}") for i in itertools.count(1))
    folder = Path(args.output) if args.output else next(path for path in numbered if not path.exists())
    folder = communicator.share(folder)
    if communicator.rank == 0:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: already holds a run; go on with --resume {folder} or choose another --output")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder}: can't write there ({error}); choose another --output") from error
    communicator.barrier()
    return folder


def data_root(config):
    """The folder with ``train`` and ``test``."""
    return bundled.SAMPLE_DATA if config.data.root == "bundled" else Path(config.data.root)


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
    """References and driving frames of some clips of ``test/``, for validation; none where there is no such folder."""
    folder = data_root(config) / "test"
    if not folder.is_dir() or not config.train.validation_clips:
        return []
    clips = find_clips(folder)[: config.train.validation_clips]
    pairs = validation_pairs(clips, config.data.num_references, DRIVING_PER_CLIP, config.model.image_size)
    return [(references, driving) for _, references, driving in pairs]


def load_perceptual(loss):
    """The frozen perceptual network's parameters, or None: AlexNet is bundled, VGG19 the user brings."""
    if loss.perceptual_network == "none" or not loss.perceptual:
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
