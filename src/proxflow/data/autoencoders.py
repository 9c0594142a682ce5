"""Autoencoders: modules that encode pictures to latents and decode them, and how they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxflow.data.images import to_bytes, to_range
from proxflow.errors import ArgumentError, DataError
from proxflow.runtime.checkpoints import checksum
from proxflow.runtime.files import read_json
from proxflow.runtime.machine import out_of_memory

BATCH, DECODED = 32, 8
"""Pictures encoded, and decoded, at a time: a last batch is padded, so that rounding is the same."""

_BROKEN = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError)
"""Errors that another library may raise for unexpected files."""


class Autoencoder(ABC):
    """The source of an autoencoder: a frozen dataclass of plain values, saved as a string in manifests and models."""

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the autoencoder: a module with ``encode`` and ``decode``, see :class:`Codec`.

        Raises:
            ArgumentError: The package that reads it is not installed.
            DataError: It is missing, or not as expected.
        """


@dataclass(frozen=True)
class KL(Autoencoder):
    """The ``AutoencoderKL`` of diffusers from a local folder, as its ``save_pretrained`` writes it.

    Args:
        path: The folder, with config.json and safetensors weights.
    """

    path: str

    def load(self) -> nn.Module:
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            raise DataError(
                f"{folder}: holds no autoencoder; expected a folder with config.json and "
                "diffusion_pytorch_model.safetensors, as diffusers saves an AutoencoderKL"
            )
        held = read_json(folder / "config.json")
        named = held.get("_class_name") if isinstance(held, dict) else held
        if named != "AutoencoderKL":
            raise DataError(f"{folder}: holds {named!r:.80}; expected an AutoencoderKL of diffusers")
        if not list(folder.glob("*.safetensors")):
            pickled = [path.name for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}")]
            found = f"pickled weights alone ({pickled[0]}), which are not read" if pickled else "no weights"
            raise DataError(f"{folder}: holds {found}; expected diffusion_pytorch_model.safetensors")
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ArgumentError(
                'an autoencoder of diffusers needs that library: pip install "proxflow[latents]"'
            ) from error
        try:
            library: Any = AutoencoderKL
            module, told = library.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
                torch_dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
        except _BROKEN as error:
            raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error
        for what, names in (("lack", told["missing_keys"]), ("have besides", told["unexpected_keys"])):
            if names:
                raise DataError(
                    f"{folder}: its weights {what} {sorted(names)[0]!r}, so they do not belong to its config"
                )
        loaded: nn.Module = module
        return loaded


class Codec:
    """A deterministic codec from an autoencoder: bytes of pictures to latents and back, on a device.

    From the encoders of diffusers, which return a distribution of latents, it takes the mode.

    Args:
        module: Any module with ``encode``, pictures (batch, channels, height, width) in [−1, 1] to latents (batch, …),
            and ``decode``, back. Latents may be within a record, as diffusers returns them.
        device: Where to compute.

    Raises:
        ArgumentError: It lacks one of them.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        for name in ("encode", "decode"):
            if not (isinstance(module, nn.Module) and callable(getattr(module, name, None))):
                raise ArgumentError(
                    f"an encoder is a torch.nn.Module with encode and decode, got {type(module).__name__} without {name}"
                )
        self.module, self.device = module.to(device).eval(), torch.device(device)
        self.sha256 = checksum(module.state_dict())

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents of pictures, uint8 (number, channels, height, width): float32 (number, …) on the CPU.

        Raises:
            DataError: They cannot be encoded.
        """
        parts = []
        for batch in torch.split(pictures, BATCH):
            try:
                found: Any = self.module.encode(to_range(batch).to(self.device))  # type: ignore[operator]
            except (RuntimeError, ValueError, TypeError) as error:
                if out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0][:200]
                raise DataError(
                    f"the encoder does not read pictures of shape {tuple(batch.shape[1:])} ({reason})"
                ) from error
            found = getattr(found, "latent_dist", found)
            found = found.mode() if callable(getattr(found, "mode", None)) and not isinstance(found, Tensor) else found
            found = getattr(found, "latent", found)
            if not isinstance(found, Tensor) or not found.is_floating_point():
                raise DataError(f"an encoder gives real numbers, a tensor, got {type(found).__name__}")
            parts.append(found.float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures of latents (number, …): uint8 (number, channels, height, width) on the CPU."""
        parts = []
        for batch in torch.split(latents, DECODED):
            full = torch.cat([batch, batch[-1:].expand(DECODED - len(batch), *batch.shape[1:])])
            found: Any = self.module.decode(full.to(self.device, torch.float32))  # type: ignore[operator]
            parts.append(to_bytes(getattr(found, "sample", found))[: len(batch)].cpu())
        return torch.cat(parts)

    def shape_of(self, picture: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape of the latents of a picture of a shape (channels, height, width).

        Raises:
            DataError: It is not (channels, height, width), or decoding returns another shape than the picture's.
        """
        latents = self.encode(torch.zeros(1, *picture, dtype=torch.uint8))
        if latents.ndim != 4 or len(latents) != 1:
            raise DataError(
                f"the encoder makes {tuple(latents.shape)} of one picture; expected (1, channels, height, width)"
            )
        back = tuple(self.decode(latents).shape[1:])
        if back != picture:
            raise DataError(
                f"the encoder gives back {back} for pictures of shape {picture}: give a --size that it divides, as "
                f"{2 ** max(3, (picture[1] - 1).bit_length())}"
            )
        channels, height, width = latents.shape[1:]
        return channels, height, width
