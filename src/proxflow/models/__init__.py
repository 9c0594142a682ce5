"""Models: a flow with its trained predictor, on disk and in memory."""

from proxflow.models.model import FORMAT, SHIPPED, Model, build, card, load, save, shipped_models, unet

__all__ = ["FORMAT", "SHIPPED", "Model", "build", "card", "load", "save", "shipped_models", "unet"]
