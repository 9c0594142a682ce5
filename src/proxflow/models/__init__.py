"""Models: a flow, its trained predictor and the kind of its data, in memory and on disk."""

from proxflow.models.card import card
from proxflow.models.model import FORMAT, SHIPPED, Model, build, class_names, flow_content, load, save, shipped_models
from proxflow.models.spec import Part, describe, parse, restore, word

__all__ = [
    "FORMAT",
    "SHIPPED",
    "Model",
    "Part",
    "build",
    "card",
    "class_names",
    "describe",
    "flow_content",
    "load",
    "parse",
    "restore",
    "save",
    "shipped_models",
    "word",
]
