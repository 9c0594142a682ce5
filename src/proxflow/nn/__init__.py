"""Networks: tensors in, tensors out."""

from proxflow.nn.unet import UNet

__all__ = ["UNet"]
