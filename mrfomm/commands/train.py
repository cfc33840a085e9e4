"""Train a model: `mpirun -n 4 python train.py --config configs/vox-256.yaml`."""

import argparse
import contextlib
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import nnabla as nn

from mrfomm import bundled
from mrfomm.commands import overview
from mrfomm.commands.options import add_context
from mrfomm.config import Config, check_trainable, leaves, load_config, needs_perceptual
from mrfomm.data.clips import Clip, find_clips
from mrfomm.data.loader import Loader, check_lengths
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.model import create_parameters
from mrfomm.model.checkpoint import Checkpoint, ParameterTree, load_checkpoint
from mrfomm.networks import ops
from mrfomm.networks.fusion import FusionError, mode_of, plug
from mrfomm.runtime.context import seed_initialisers
from mrfomm.runtime.processes import Communicator, first_process_speaks, start_processes
from mrfomm.store import locked, sha256_of
from mrfomm.training.agreement import agree, versions
from mrfomm.training.run_folder import load_resumable, run_of, tidy
from mrfomm.training.step import load_perceptual
from mrfomm.training.trainer import Trainer
from mrfomm.training.validation import HeldOut, digest_of, held_out
from mrfomm.training.warm_start import say_changes, start_from

BUNDLED = "bundled"  # as data.root
FUSION_KEY = "model.fusion.mode="  # of --set
OF_PARAMETERS = ("model.", "train.discriminator")  # keys that say which parameters there are


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    what = "configuration: a file, the name of a preset, or `list` for these names (demo-64)"
    add("--config", metavar="YAML", help=what)
    add("--data", metavar="DIR", help="data in FOMM's format, with train/ and test/ (data.root of the configuration)")
    what = "override the configuration: train.batch_size=8"
    add("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=what)
    add("-o", "--output", metavar="DIR", help="run folder (runs/NAME-OF-CONFIG, numbered if taken)")
    add("--resume", metavar="RUN", help="go on with a run from its newest whole checkpoint, or from RUN/NAME of one")
    add(
        "--init",
        metavar="CKPT",
        help="start from a checkpoint's weights, of another size or width too; tells what is new",
    )
    add_context(parser)
    args = parser.parse_args(arguments)
    if not (args.config or args.resume):
        args.config = "demo-64"
    return args


def presets() -> dict[str, str]:
    """The first sentence of each bundled configuration, by name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(bundled.CONFIGS.glob("*.yaml"))}
    heads = {name: " ".join(re.findall(r"^# (.*)", text, re.MULTILINE)) for name, text in texts.items()}
    return {name: re.sub(r"\. .*", ".", head) for name, head in heads.items()}


def config_path(name: str) -> Path:
    """The file that --config means; a UserError for what looks like the name of a preset and is none."""
    preset = bundled.CONFIGS / f"{name}.yaml"
    if Path(name).is_file() or (not preset.is_file() and Path(name).name != Path(name).stem):
        return Path(name)
    if not preset.is_file():
        raise UserError(f"--config {name}: no such file, and no preset; --config list prints the names of presets")
    return preset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    with first_process_speaks():
        args = parse_arguments(arguments)
        if args.config == "list":
            print("\n".join(f"{name:<18}{text}" for name, text in presets().items()))
            return 0
    with start_processes(args.context) as communicator, contextlib.ExitStack() as stack:
        return run(args, communicator, stack)


def run(args: argparse.Namespace, communicator: Communicator, stack: contextlib.ExitStack) -> int:
    """Train as one of the communicator's processes; returns the exit code. The ExitStack holds the folder's lock."""
    if args.resume and (args.config or args.init or args.output):
        raise UserError("--resume goes on with a run as it is; leave out --config, --init and --output")
    agree(communicator, versions())
    checkpoint = resumable(args.resume, communicator, stack) if args.resume else None
    config = configuration(args, checkpoint)
    communicator.watch(config.train.patience)
    initial = load_checkpoint(args.init) if args.init else None
    agree(communicator, settings(config, checkpoint or initial))
    data = bundled.SAMPLE_DATA if config.data.root == BUNDLED else Path(config.data.root)
    clips = find_clips(data / "train")
    if communicator.rank == 0:
        check_lengths(clips, config.data.num_references)
    perceptual = load_perceptual(config.loss)
    operators = communicator.synchronised(ops.fastest(nn.get_current_context()))
    with ops.implementation(operators), make_loader(config, clips, communicator) as loader:
        validation = held_out(data / "test", config)
        agree(communicator, material(config, loader, validation))
        seed_initialisers(config.train.seed)
        tree = restored_tree(checkpoint, config) if checkpoint else ParameterTree()
        folder = checkpoint.folder.parent if checkpoint else new_folder(args, communicator, stack)
        overview.tell_data(config, clips, len(validation))
        overview.tell_place(communicator.size, folder)
        trainer = Trainer(config, tree, loader, folder, communicator, perceptual, validation)
        if checkpoint:
            say_changes(checkpoint.folder, checkpoint.config.model, config.model)
            trainer.restore(checkpoint)
        elif initial:
            start_from(initial, tree, config, args.init)
        size = sum(parameter.size for parameter in tree.trainable("").values())
        overview.tell_plan(config, size, loader.steps_per_epoch, trainer.progress.step)
        finished = trainer.run()
    if communicator.rank == 0:
        print(folder)
    return 0 if finished else 130


def resumable(run: str, communicator: Communicator, stack: contextlib.ExitStack) -> Checkpoint:
    """The Checkpoint to go on from, whose run folder is locked and tidy from now on."""
    if communicator.rank == 0 and Path(run).is_dir():
        stack.enter_context(locked(run_of(run)))
        tidy(run_of(run))
    communicator.barrier()
    return load_resumable(run)


def restored_tree(checkpoint: Checkpoint, config: Config) -> ParameterTree:
    """A ParameterTree with a Checkpoint's parameters; those that the configuration asks for are compared first."""
    tree = ParameterTree()
    with tree.scope(), ops.without_values():
        create_parameters(config.model, config.train.discriminator)
    try:
        tree.assign(checkpoint.parameters, checkpoint.folder)
    except UserError as error:
        values = zip(leaves(checkpoint.config), leaves(config))
        changed = [key for (key, before, _), (_, now, _) in values if before != now and key.startswith(OF_PARAMETERS)]
        if not changed:
            raise
        remedy = f"begin another run with --init {checkpoint.folder}"
        raise UserError(
            f"{checkpoint.folder}: {', '.join(changed)} can't change where a run goes on; {remedy}"
        ) from error
    return tree


def configuration(args: argparse.Namespace, checkpoint: Checkpoint | None) -> Config:
    """The Config of --config, or of the run to resume, with --data and --set on top, and absolute paths."""
    source = checkpoint.folder / "config.yaml" if checkpoint else config_path(args.config)
    config = load_config(source, [*([f"data.root={args.data}"] if args.data else []), *args.set])
    check_trainable(config, source)
    check_fusion(config.model.fusion.mode, not checkpoint or any(each.startswith(FUSION_KEY) for each in args.set))
    data, loss = config.data, config.loss
    if data.root != BUNDLED:
        data = dataclasses.replace(data, root=str(Path(data.root).absolute()))
    if loss.perceptual_weights:
        loss = dataclasses.replace(loss, perceptual_weights=str(Path(loss.perceptual_weights).absolute()))
    return dataclasses.replace(config, data=data, loss=loss)


def check_fusion(mode: str, is_asked: bool) -> None:
    """Raise a UserError for a fusion mode that isn't known here; one that the user has named is imported first."""
    try:
        if is_asked:
            plug(mode)
        mode_of(mode)
    except FusionError as error:
        raise UserError(f"model.fusion.mode: {error}") from error


def settings(config: Config, begin: Checkpoint | None) -> dict[str, object]:
    """What processes must agree on before they read data: the value of every key, and the weights they begin with."""
    state = begin and begin.folder / "state.json"  # it holds the digests of the other files
    weights = f"{sha256_of(state)[:12]} of {state}" if state else None
    mode = config.model.fusion.mode
    fusion = " ".join((mode, mode_of(mode).version[:12])).strip()
    values: dict[str, object] = {key: value for key, value, _ in leaves(config)}
    return {**values, "model.fusion.mode": fusion, "weights to begin with": weights}


def material(config: Config, loader: Loader, validation: Sequence[HeldOut]) -> dict[str, object]:
    """What processes must agree on of what they have read."""
    path = config.loss.perceptual_weights if needs_perceptual(config.loss) else ""
    return {
        "training clips": f"{len(loader.clips)} of listing {loader.digest[:12]}",
        "held-out clips": f"{len(validation)} of pictures {digest_of(validation)[:12]}",
        "perceptual weights": sha256_of(path)[:12] if path else None,
    }


def new_folder(args: argparse.Namespace, communicator: Communicator, stack: contextlib.ExitStack) -> Path:
    """The folder of a new run, made and locked now: --output, or the first free runs/NAME, runs/NAME-2 ..."""
    name = Path("runs") / Path(args.config).stem
    numbered = (name if i == 1 else name.with_name(f"{name.name}-{i}") for i in itertools.count(1))
    folder = Path(args.output) if args.output else next(path for path in numbered if not path.exists())
    folder = communicator.share(folder)
    if communicator.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder))
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            remedy = "go on with a run by --resume, or choose another --output"
            raise UserError(f"{folder}: already holds a run, or something else; {remedy}")
        tidy(folder)
    communicator.barrier()
    return folder


def make_loader(config: Config, clips: Sequence[Clip], communicator: Communicator) -> Loader:
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
        wide_pairs=data.wide_pairs,
        references=data.references,
        twins=data.twins,
    )


def command() -> None:
    """The console command."""
    run_command(main)
