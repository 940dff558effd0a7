"""Pretrained parts that come as installable packages: nothing is fetched from a model hub.

``packages.WEIGHTS`` lists them with their licences; the loaders give frozen modules.
"""

from diptych.models.pretrained.causal_lm import CausalLM, load_causal_lm, trim_vocabulary
from diptych.models.pretrained.efficientnet import EfficientNetLite, load_efficientnet
from diptych.models.pretrained.gemma import load_gemma
from diptych.models.pretrained.minilm import MiniLM, load_minilm
from diptych.models.pretrained.packages import WEIGHTS, installed, licences, require
from diptych.models.pretrained.tower import VisionTower

__all__ = [
    "WEIGHTS",
    "CausalLM",
    "EfficientNetLite",
    "MiniLM",
    "VisionTower",
    "installed",
    "licences",
    "load_causal_lm",
    "load_efficientnet",
    "load_gemma",
    "load_minilm",
    "require",
    "trim_vocabulary",
]
