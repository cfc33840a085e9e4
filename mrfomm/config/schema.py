"""All keys of a configuration as frozen dataclasses, each with its default and its limits.

A whole number without limits of its own lies in 1..1000. What is absurd would take memory or time without end.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mrfomm.data.augment import AugmentOptions
from mrfomm.errors import AnyPath, UserError

FUSION_MODES = ("patch", "element", "mean", "occlusion")
SMALLEST_PERCEPTUAL_INPUT = {"vgg19": 16, "alexnet": 31, "none": 1}  # pixels a side; pooling leaves nothing of less
WIDEST, MANY, MOST = 1 << 16, 1 << 20, (1 << 31) - 1
LONGEST_SHOWN = 100  # characters of a wrong value in an error


class Limit(NamedTuple):
    """What a value must be, and what is said of one that isn't, with ``{}`` for the value."""

    holds: Callable[[Any], bool]
    problem: str


def limited(default: Any, *limits: Limit) -> Any:
    """A field with a default and limits."""
    return field(default=default, metadata={"limits": limits})


def whole(least: int = 1, most: int = 1000) -> tuple[Limit, Limit]:
    """The limits of a whole number."""
    return (
        Limit(lambda value: value >= least, f"must be at least {least}, not {{}}"),
        Limit(lambda value: value <= most, f"must be at most {most}, not {{}}"),
    )


def among(values: Iterable[str]) -> Limit:
    """One of the values."""
    return Limit(lambda value: value in values, f"must be one of {', '.join(values)}")


def is_fraction(value: float) -> bool:
    """Whether a number is 1, 1/2, 1/3, 1/4 ..."""
    return 0 < value <= 1 and _is_whole(1 / value)


FRACTION = Limit(is_fraction, "must be 1, 1/2, 1/3, 1/4 ...")
POSITIVE = Limit(lambda value: value > 0, "must be positive")
SHARE = Limit(lambda share: 0 <= share <= 1, "must lie in 0..1")
NOT_NEGATIVE = Limit(lambda value: value >= 0, "must not be negative")
STEPS = whole(most=MOST)
FUSION = Limit(
    lambda mode: mode in FUSION_MODES or bool(re.fullmatch(r"(?=.{1,100}$)\w+(\.\w+)*:\w+", mode)),
    f"must be one of {', '.join(FUSION_MODES)}, or package.module:function (docs/fusion.md)",
)


@dataclass(frozen=True)
class KeypointsConfig:
    """Keypoint detector (FOMM; ``kp_detector_params``)."""

    # width of the hourglass: level i has min(max_features, expansion * 2^(i+1)) channels
    expansion: int = limited(32, *whole(most=WIDEST))
    max_features: int = limited(1024, *whole(most=WIDEST))
    blocks: int = 5  # levels of the hourglass
    scale: float = limited(0.25, FRACTION)  # the detector sees the image at this share of its size
    temperature: float = limited(0.1, POSITIVE)  # of the softmax that turns a map into a heatmap


@dataclass(frozen=True)
class MotionConfig:
    """Dense motion network (FOMM; ``dense_motion_params``)."""

    expansion: int = limited(64, *whole(most=WIDEST))
    max_features: int = limited(1024, *whole(most=WIDEST))
    blocks: int = 5
    scale: float = limited(0.25, FRACTION)
    variance: float = limited(0.01, POSITIVE)  # of the keypoints' Gaussians, in units of the [-1, 1] grid


@dataclass(frozen=True)
class GeneratorConfig:
    """Encoder and decoder around the warp (FOMM; ``generator_params``).

    ``copy``, which neither FOMM nor the paper has: pixels may come from the warped references (docs/train.md).
    """

    expansion: int = limited(64, *whole(most=WIDEST))
    max_features: int = limited(512, *whole(most=WIDEST))
    down_blocks: int = 2
    bottleneck_blocks: int = 6
    copy: bool = False


@dataclass(frozen=True)
class FusionConfig:
    """Fusion unit (paper, section 3). The kernel size is not in the paper; 3 is this project's choice."""

    mode: str = limited("patch", FUSION)
    kernel: int = limited(3, Limit(lambda side: side > 0 and side % 2 == 1, "must be a positive odd number"), *whole())


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Patch discriminator (FOMM; ``discriminator_params``). vox-adv: keypoint_input on, spectral_norm off."""

    expansion: int = limited(64, *whole(most=WIDEST))
    max_features: int = limited(512, *whole(most=WIDEST))
    blocks: int = 4
    spectral_norm: bool = True
    keypoint_input: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Everything the networks are built from."""

    image_size: int = limited(256, *whole(most=2048))
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
    about: str = ""  # what the clips show, in a line; the model says so later
    num_references: int = 3  # K
    id_sampling: bool = True  # one item per identity (file name before '#'), a random video of it each time
    num_repeats: int = limited(75, *whole(most=MANY))  # passes over the items that make one epoch
    workers: int = limited(2, *whole(least=0))  # decoding processes; 0 decodes in the training process
    # stop when more than this share of the clips can't be read
    max_broken: float = limited(0.1, SHARE)
    # share of the samples whose driving frame is drawn by its difference of angle from the nearest reference; these
    # two need labels of the clips (``sampling.draw_by_pose``)
    wide_pairs: float = limited(0.0, SHARE)
    references: str = limited("random", among(("random", "spread")))  # spread: over the clip's yaw
    twins: float = limited(0.0, SHARE)  # share of the samples that the clip's twin drives (``clips.twin_of``)
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)


@dataclass(frozen=True)
class LossConfig:
    """Loss weights (FOMM; ``loss_weights``).

    Three are not FOMM's and zero by default; they serve small data and short runs. The pixel loss stands in on
    machines without VGG19. The separation of keypoints (face-vid2vid) keeps them from gathering on one feature, such
    as the eyes. The warp loss shows the motion its own error, whatever the generator still makes of it.
    """

    perceptual_network: str = limited("vgg19", among(SMALLEST_PERCEPTUAL_INPUT))
    perceptual_weights: str = ""  # VGG19 as `python -m mrfomm.convert` writes it; alexnet is bundled
    perceptual: float = limited(10.0, NOT_NEGATIVE)  # per layer and scale
    pixel: float = limited(0.0, NOT_NEGATIVE)  # mean |prediction - driving|, per scale
    scales: tuple[float, ...] = limited(  # of the image pyramid
        (1.0, 0.5, 0.25, 0.125), Limit(lambda each: bool(each) and all(map(is_fraction, each)), "must be 1, 0.5 ...")
    )
    equivariance_value: float = limited(10.0, NOT_NEGATIVE)
    equivariance_jacobian: float = limited(10.0, NOT_NEGATIVE)
    separation: float = limited(0.0, NOT_NEGATIVE)  # of the driving keypoints
    separation_distance: float = limited(0.1, NOT_NEGATIVE)  # squared, in [-1,1] coordinates (face-vid2vid)
    # mean |warped reference - driving| over all references, summed over losses.WARP_SCALES
    warp: float = limited(0.0, NOT_NEGATIVE)
    tps_sigma_affine: float = limited(0.05, NOT_NEGATIVE)
    tps_sigma: float = limited(0.005, NOT_NEGATIVE)
    tps_points: int = limited(5, *whole(), Limit(lambda side: side >= 2, "must be at least 2"))
    adversarial: float = limited(1.0, NOT_NEGATIVE)
    feature_matching: float = limited(10.0, NOT_NEGATIVE)


@dataclass(frozen=True)
class TrainConfig:
    """The training run (paper, section 4)."""

    seed: int = limited(0, *whole(0, MOST))
    epochs: int = limited(100, *STEPS)
    batch_size: int = limited(32, *whole(most=WIDEST))  # over all processes
    learning_rate: float = limited(2e-4, POSITIVE)
    # epochs at which the learning rate is multiplied by 0.1
    milestones: tuple[int, ...] = limited((60, 90), Limit(lambda each: list(each) == sorted(each), "must ascend"))
    discriminator: bool = False  # stage 2
    log_every: int = limited(10, *STEPS)  # steps
    picture_every: int = limited(500, *STEPS)
    checkpoint_every: int = limited(500, *STEPS)
    validate_every: int = limited(1000, *STEPS)
    validation_clips: int = limited(8, *whole(0, MANY))  # held-out clips (from root/test) of a validation
    keep_checkpoints: int = limited(3, *whole(most=MANY))
    patience: int = limited(600, *STEPS)  # seconds that one of several processes may wait for the others
    tensorboard: bool = False  # also write event files (extra `tensorboard`)


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def check_config(config: Config, source: AnyPath) -> None:
    """Raise UserError for values that can't work, naming the key."""
    for key, value, limits in leaves(config):
        for limit in limits:
            if not limit.holds(value):
                raise UserError(f"{source}: {key} {limit.problem.format(shown(value))}")
    for key, agrees, problem in _agreements(config):
        if not agrees:
            raise UserError(f"{source}: {key} {problem}")


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Limit, ...]]]:
    """The full key, value and limits of everything in a section."""
    for item in dataclasses.fields(section):
        value, key = getattr(section, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, item.metadata.get("limits", whole() if item.type is int else ())


def _agreements(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Key, whether its value goes with the others, and what is said if not; and limits where no field has them."""
    model = config.model
    for name, value in vars(config.data.augmentation).items():
        most = 0.5 if name == "jitter_hue" else 1
        yield f"data.augmentation.{name}", 0 <= value <= most, f"must lie in 0..{most}"
    for name, net in (("keypoints", model.keypoints), ("motion", model.motion)):
        seen = model.image_size * net.scale
        problem = f"halvings don't divide the {seen:g} pixels it sees (model.image_size x model.{name}.scale)"
        yield f"model.{name}.blocks", _is_whole(seen / 2**net.blocks), f"{net.blocks} {problem}"
    problem = "is too small: the keypoint detector needs 8 pixels after model.keypoints.scale"
    yield "model.image_size", model.image_size * model.keypoints.scale >= 8, problem
    halvings = model.generator.down_blocks
    left = model.image_size / 2**halvings
    problem = f"make {left:g} pixels of model.image_size = {model.image_size}; a whole number of 2 or more is needed"
    yield "model.generator.down_blocks", left >= 2 and left.is_integer(), f"{halvings} halvings {problem}"


def check_trainable(config: Config, source: AnyPath) -> None:
    """Raise UserError, naming the key, for what stands in the way of training though inference works."""
    loss, size, blocks = config.loss, config.model.image_size, config.model.discriminator.blocks
    smallest, seen = SMALLEST_PERCEPTUAL_INPUT[loss.perceptual_network], size * min(loss.scales)
    if loss.perceptual and seen < smallest:
        raise UserError(
            f"{source}: loss.scales make images of {seen:g} pixels, {loss.perceptual_network} needs {smallest}; "
            "leave out the smallest scale"
        )
    if not (needs_perceptual(loss) or loss.pixel or loss.warp or config.train.discriminator):
        raise UserError(
            f"{source}: no loss looks at the result (loss.perceptual with a loss.perceptual_network, loss.pixel, "
            "loss.warp, train.discriminator are all off); switch one on"
        )
    if config.train.discriminator and size < smallest_judged(blocks):
        problem = f"model.discriminator.blocks = {blocks} need pictures of {smallest_judged(blocks)} pixels; use fewer"
        raise UserError(f"{source}: {problem}")


def needs_perceptual(loss: LossConfig) -> bool:
    """Whether a perceptual network is asked for and counts."""
    return loss.perceptual_network != "none" and loss.perceptual > 0


def smallest_judged(blocks: int) -> int:
    """The smallest picture a discriminator can judge, pixels a side.

    Every block has a 4x4 convolution without padding; all but the last halve what it leaves.
    """
    side = 4
    for _ in range(blocks - 1):
        side = side * 2 + 3
    return side


def shown(value: object) -> str:
    """A value as Python writes it, cut short: a few aliases of YAML make a small file endless."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring = 2, LONGEST_SHOWN
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _is_whole(value: float) -> bool:
    return 1 - 1e-9 <= value < math.inf and abs(value - round(value)) < 1e-6
