"""The configuration of a run: ``schema`` says which keys there are and what they may be, ``loader`` reads them."""

from mrfomm.config.loader import config_from_dict as config_from_dict
from mrfomm.config.loader import config_to_yaml as config_to_yaml
from mrfomm.config.loader import load_config as load_config
from mrfomm.config.loader import read_yaml as read_yaml
from mrfomm.config.schema import FUSION_MODES as FUSION_MODES
from mrfomm.config.schema import Config as Config
from mrfomm.config.schema import FusionConfig as FusionConfig
from mrfomm.config.schema import GeneratorConfig as GeneratorConfig
from mrfomm.config.schema import KeypointsConfig as KeypointsConfig
from mrfomm.config.schema import LossConfig as LossConfig
from mrfomm.config.schema import ModelConfig as ModelConfig
from mrfomm.config.schema import MotionConfig as MotionConfig
from mrfomm.config.schema import TrainConfig as TrainConfig
from mrfomm.config.schema import check_trainable as check_trainable
from mrfomm.config.schema import leaves as leaves
from mrfomm.config.schema import needs_perceptual as needs_perceptual
from mrfomm.config.schema import shown as shown
from mrfomm.config.schema import smallest_judged as smallest_judged
