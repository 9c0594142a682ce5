"""Networks: tensors in, tensors out."""

from proxflow.nn.dit import DiT
from proxflow.nn.mlp import MLP
from proxflow.nn.token_transformer import TokenTransformer
from proxflow.nn.unet import UNet

__all__ = ["MLP", "DiT", "TokenTransformer", "UNet"]
