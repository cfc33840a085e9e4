"""Configuration: frozen dataclasses, read strictly from YAML, overridden by ``key=value`` pairs.

A YAML file may name a parent (``parent: vox-256.yaml``, relative to itself) and override parts of it. Every key is
known, every value has the declared type, every error names the full key. The resolved configuration is written into
every run and every checkpoint, so that nothing else has to be named later.
"""

import dataclasses
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from mrfomm.data.augment import AugmentOptions
from mrfomm.errors import AnyPath, UserError, check_is_file

FUSION_MODES = ("patch", "element", "mean", "occlusion")
_SOME, _MANY, _MOST = 1 << 16, 1 << 20, (1 << 31) - 1
LARGEST = {  # of the whole numbers, as what is absurd would take memory or time without end...
    "image_size": 2048,
    "expansion": _SOME,
    "max_features": _SOME,
    "batch_size": _SOME,
    "num_repeats": _MANY,
    "seed": _MOST,
    "epochs": _MOST,
    "log_every": _MOST,
    "picture_every": _MOST,
    "checkpoint_every": _MOST,
    "validate_every": _MOST,
    "validation_clips": _MANY,
    "keep_checkpoints": _MANY,
}
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, OverflowError)  # for nested, impossible and endless values
MAY_BE_ZERO = ("train.seed", "data.workers", "train.validation_clips")
LARGEST_NUMBER = sys.float_info.max
MOST_BYTES = 1 << 16  # of a configuration, which has some thousand; reading takes a second for so many
LONGEST_SHOWN = 100  # characters of a wrong value in an error
LARGEST_COUNT = 1000  # ... and of the others: keypoints, blocks, a kernel, references, workers
SMALLEST_PERCEPTUAL_INPUT = {"vgg19": 16, "alexnet": 31, "none": 1}  # pixels a side; pooling leaves nothing of less


class _Dataclass(Protocol):
    """Any dataclass's instance."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


_Section = TypeVar("_Section", bound=_Dataclass)
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class KeypointsConfig:
    """Keypoint detector (FOMM; ``kp_detector_params``)."""

    expansion: int = 32  # width of the hourglass: level i has min(max_features, expansion * 2^(i+1)) channels
    max_features: int = 1024
    blocks: int = 5  # levels of the hourglass
    scale: float = 0.25  # the detector sees the image at this share of its size
    temperature: float = 0.1  # of the softmax that turns a map into a heatmap


@dataclass(frozen=True)
class MotionConfig:
    """Dense motion network (FOMM; ``dense_motion_params``)."""

    expansion: int = 64
    max_features: int = 1024
    blocks: int = 5
    scale: float = 0.25
    variance: float = 0.01  # of the keypoints' Gaussians, in units of the [-1, 1] grid


@dataclass(frozen=True)
class GeneratorConfig:
    """Encoder and decoder around the warp (FOMM; ``generator_params``)."""

    expansion: int = 64
    max_features: int = 512
    down_blocks: int = 2
    bottleneck_blocks: int = 6


@dataclass(frozen=True)
class FusionConfig:
    """Fusion unit (paper, section 3). The kernel size is not in the paper; 3 is this project's choice."""

    mode: str = "patch"
    kernel: int = 3


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Patch discriminator (FOMM; ``discriminator_params``). vox-adv: keypoint_input on, spectral_norm off."""

    expansion: int = 64
    max_features: int = 512
    blocks: int = 4
    spectral_norm: bool = True
    keypoint_input: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Everything the networks are built from."""

    image_size: int = 256
    num_keypoints: int = 10
    keypoints: KeypointsConfig = field(default_factory=KeypointsConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True)
class DataConfig:
    """Training data in FOMM's format: ``root/train`` and ``root/test``."""

    root: str = "data/vox"  # "bundled": the small set that comes with the package
    num_references: int = 3  # K
    id_sampling: bool = True  # one item per identity (file name before '#'), a random video of it each time
    num_repeats: int = 75  # passes over the items that make one epoch
    workers: int = 2  # decoding processes; 0 decodes in the training process
    max_broken: float = 0.1  # stop when more than this share of the clips can't be read
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)


@dataclass(frozen=True)
class LossConfig:
    """Loss weights (FOMM; ``loss_weights``).

    Three are not FOMM's and zero by default; they serve small data and short runs. The pixel loss stands in on
    machines without VGG19. The separation of keypoints (face-vid2vid) keeps them from gathering on one feature, such
    as the eyes. The warp loss shows the motion its own error, whatever the generator still makes of it.
    """

    perceptual_network: str = "vgg19"
    perceptual_weights: str = ""  # VGG19 as `python -m mrfomm.convert` writes it; alexnet is bundled
    perceptual: float = 10.0  # per layer and scale
    pixel: float = 0.0  # mean |prediction - driving|, per scale
    scales: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)  # of the image pyramid
    equivariance_value: float = 10.0
    equivariance_jacobian: float = 10.0
    separation: float = 0.0  # of the driving keypoints
    separation_distance: float = 0.1  # squared, in [-1,1] coordinates (face-vid2vid)
    warp: float = 0.0  # mean |warped reference - driving| over all references, summed over losses.WARP_SCALES
    tps_sigma_affine: float = 0.05
    tps_sigma: float = 0.005
    tps_points: int = 5
    adversarial: float = 1.0
    feature_matching: float = 10.0


@dataclass(frozen=True)
class TrainConfig:
    """The training run (paper, section 4)."""

    seed: int = 0
    epochs: int = 100
    batch_size: int = 32  # over all processes
    learning_rate: float = 2e-4
    milestones: tuple[int, ...] = (60, 90)  # epochs at which the learning rate is multiplied by 0.1
    discriminator: bool = False  # stage 2
    log_every: int = 10  # steps
    picture_every: int = 500
    checkpoint_every: int = 500
    validate_every: int = 1000
    validation_clips: int = 8  # held-out clips (from root/test) of a validation
    keep_checkpoints: int = 3
    tensorboard: bool = False  # also write event files (extra `tensorboard`)


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config(path: AnyPath, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: a YAML file.
        overrides: strings ``key=value``; the key is dotted (``train.batch_size``), the value is YAML.

    Returns:
        Config.

    Raises:
        UserError: unreadable file, unknown key, wrong type or a value that can't work, with the full key.
    """
    values = _read_with_parents(Path(path), seen=())
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values, str(path))


def config_from_dict(values: dict[str, Any], source: AnyPath) -> Config:
    """Build a checked :class:`Config` from nested dictionaries; ``source`` names them in errors."""
    config = _build(Config, values, source, ())
    check_config(config, source)
    return config


def config_to_yaml(config: Config) -> str:
    """The configuration as YAML text that :func:`load_config` reads back to an equal object."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, default_flow_style=None, width=110)


def check_config(config: Config, source: AnyPath) -> None:
    """Raise UserError for values that can't work, naming the key."""
    for key, accepted, problem in _constraints(config):
        if not accepted:
            raise UserError(f"{source}: {key} {problem}")


def check_trainable(config: Config, source: AnyPath) -> None:
    """Raise UserError, naming the key, for what stands in the way of training though inference works."""
    loss, size = config.loss, config.model.image_size * min(config.loss.scales)
    smallest = SMALLEST_PERCEPTUAL_INPUT[loss.perceptual_network]
    if loss.perceptual and size < smallest:
        raise UserError(
            f"{source}: loss.scales make images of {size:g} pixels, {loss.perceptual_network} needs {smallest}; "
            "leave out the smallest scale"
        )
    if not (needs_perceptual(loss) or loss.pixel or loss.warp or config.train.discriminator):
        raise UserError(
            f"{source}: no loss looks at the result (loss.perceptual with a loss.perceptual_network, loss.pixel, "
            "loss.warp, train.discriminator are all off); switch one on"
        )
    judged = smallest_judged(config.model.discriminator.blocks)
    if config.train.discriminator and config.model.image_size < judged:
        raise UserError(
            f"{source}: model.discriminator.blocks = {config.model.discriminator.blocks} need pictures of {judged} "
            "pixels; use fewer"
        )


def needs_perceptual(loss: LossConfig) -> bool:
    """Whether a perceptual network is asked for and counts."""
    return loss.perceptual_network != "none" and loss.perceptual > 0


def smallest_judged(blocks: int) -> int:
    """The smallest picture a discriminator can judge, pixels a side.

    Every block has a 4x4 convolution without padding; all but the last halve what it leaves.
    """
    side = 1
    for i in range(blocks):
        side = side * (1 if i == 0 else 2) + 3
    return side


def _constraints(config: Config) -> Iterator[tuple[str, bool, str]]:
    model, data, loss, train = config.model, config.data, config.loss, config.train
    yield "model.fusion.mode", model.fusion.mode in FUSION_MODES, f"must be one of {', '.join(FUSION_MODES)}"
    yield (
        "model.fusion.kernel",
        model.fusion.kernel % 2 == 1 and model.fusion.kernel > 0,
        "must be a positive odd number",
    )
    for key, value in _integers(config, ""):
        smallest, name = int(key not in MAY_BE_ZERO), key.split(".")[-1]
        largest = LARGEST.get(name, LARGEST_COUNT)
        yield key, value >= smallest, f"must be at least {smallest}, not {_shown(value)}"
        yield key, value <= largest, f"must be at most {largest}, not {_shown(value)}"
    for name, net in (("keypoints", model.keypoints), ("motion", model.motion)):
        size = model.image_size * net.scale
        key = f"model.{name}"
        yield f"{key}.scale", 0 < net.scale <= 1 and _is_whole(1 / net.scale), "must be 1, 1/2, 1/3, 1/4 ..."
        yield (
            f"{key}.blocks",
            _is_whole(size / 2**net.blocks),
            f"{net.blocks} halvings don't divide the {size:g} pixels it sees (model.image_size x {key}.scale)",
        )
    yield (
        "model.image_size",
        model.image_size * model.keypoints.scale >= 8,
        "is too small: the keypoint detector needs 8 pixels after model.keypoints.scale",
    )
    halved = model.image_size / 2**model.generator.down_blocks
    yield (
        "model.generator.down_blocks",
        halved >= 2 and halved.is_integer(),
        f"{model.generator.down_blocks} halvings make {halved:g} pixels of model.image_size = {model.image_size}; "
        "a whole number of 2 or more is needed",
    )
    yield "model.keypoints.temperature", model.keypoints.temperature > 0, "must be positive"
    yield "model.motion.variance", model.motion.variance > 0, "must be positive"
    yield (
        "loss.perceptual_network",
        loss.perceptual_network in SMALLEST_PERCEPTUAL_INPUT,
        f"must be one of {', '.join(SMALLEST_PERCEPTUAL_INPUT)}",
    )
    yield (
        "loss.scales",
        bool(loss.scales) and all(0 < s <= 1 and _is_whole(1 / s) for s in loss.scales),
        "must be 1, 0.5 ...",
    )
    yield "loss.tps_points", loss.tps_points >= 2, "must be at least 2"
    for name, value in dataclasses.asdict(loss).items():
        yield f"loss.{name}", not isinstance(value, float) or value >= 0, "must not be negative"
    for name, value in dataclasses.asdict(data.augmentation).items():
        limit = 0.5 if name == "jitter_hue" else 1
        yield f"data.augmentation.{name}", 0 <= value <= limit, f"must lie in 0..{limit}"
    yield "data.max_broken", 0 <= data.max_broken <= 1, "must lie in 0..1"
    yield "train.learning_rate", train.learning_rate > 0, "must be positive"
    yield "train.milestones", list(train.milestones) == sorted(train.milestones), "must ascend"


def _integers(node: _Dataclass | type[_Dataclass], prefix: str) -> Iterator[tuple[str, int]]:
    for item in dataclasses.fields(node):
        value, key = getattr(node, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from _integers(value, f"{key}.")
        elif item.type is int:
            yield key, value


def _is_whole(value: float) -> bool:
    return value >= 1 - 1e-9 and abs(value - round(value)) < 1e-6


def _read_with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    values = read_yaml(path)
    parent = values.pop("parent", None)
    if parent is None:
        return values
    parent_path = path.parent / str(parent)
    check_is_file(parent_path)
    if parent_path.resolve() in seen or parent_path.resolve() == path.resolve():
        raise UserError(f"{path}: parent {parent} leads back to itself; break the circle")
    merged = _read_with_parents(parent_path, (*seen, path.resolve()))
    _merge(merged, values)
    return merged


def read_yaml(path: AnyPath) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; UserError names the file when it can't be."""
    check_is_file(path)
    if Path(path).stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: larger than a configuration can be; give a YAML file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: can't read the configuration ({error}); give a YAML file") from error
    try:
        values = yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"{path}: not valid YAML ({error}); mend the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a mapping of keys to values")
    return values


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key=value, for example train.batch_size=8")
    try:
        value = yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"--set {key}: {_shown(text)} is not valid YAML; quote it") from error
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {section} is a value, not a section")
    values[name] = value


def _build(cls: type[_Section], values: object, source: AnyPath, path: tuple[str, ...]) -> _Section:
    if not isinstance(values, dict):
        raise UserError(f"{source}: {'.'.join(path) or 'the file'} must be a section with keys, not {_shown(values)}")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            full = ".".join((*path, key if isinstance(key, str) else _shown(key)))
            raise UserError(f"{source}: unknown key {full}; known here: {', '.join(fields)}")
    return cls(**{key: _value(fields[key].type, value, source, (*path, key)) for key, value in values.items()})


def _value(kind: Any, value: object, source: AnyPath, path: tuple[str, ...]) -> object:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, source, path)
    convert = _CONVERTERS[kind]
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {'.'.join(path)} must be {error}, not {_shown(value)}") from error


def _shown(value: object) -> str:
    """A value as Python writes it, cut short: a few aliases of YAML make a small file endless."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 2, LONGEST_SHOWN
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as a string
        try:
            value = float(value)
        except ValueError:
            raise TypeError("a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_NUMBER:
        raise TypeError("a finite number")
    return float(value)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a string")
    return value


def _list_of(item: Callable[[object], _Item]) -> Callable[[object], tuple[_Item, ...]]:
    def convert(value: object) -> tuple[_Item, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        return tuple(item(entry) for entry in value)

    return convert


_CONVERTERS = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _string,
    tuple[int, ...]: _list_of(_integer),
    tuple[float, ...]: _list_of(_number),
}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
