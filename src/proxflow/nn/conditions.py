"""Conditioning of networks: labels and vectors embedded with the time, images read with the input."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from proxflow.errors import ArgumentError
from proxflow.examples import GUIDANCE, Condition
from proxflow.nn.layers import zero

NONE = -1
"""The label of an example without a class."""


class Conditions(nn.Module):
    """What a network is conditioned on: how a condition is read, checked and embedded.

    A condition is class labels, int64 (batch,) from 0; vectors (batch, vectors); images (batch, images, height, width),
    of the size of the denoised image; or, if there are several of these, a dictionary with the keys "label", "vector"
    and "image". An example may lack any of them: its label is −1, its vector or image NaN. ``None`` lacks all for the
    whole batch.

    Embeddings of labels and vectors are added to that of the time: "Diffusion Models Beat GANs on Image Synthesis"
    (Dhariwal & Nichol, 2021), arXiv 2105.05233. A missing label has an embedding of its own, the null class:
    "Classifier-Free Diffusion Guidance" (Ho & Salimans, 2022), arXiv 2207.12598. It is initialised to zero, and nothing
    is added for a missing vector or image: so weights of a network without conditions predict the same.

    With ``guidance`` a condition may also say how far the prediction is guided, by the key "guidance" of the
    dictionary, (batch, 3): the weight w in [1, guidance], the first time in [0, ½] and the last in [½, 1]. NaN and w =
    1 mean no guidance. It is embedded as vectors are, multiplied by (w − 1)/(guidance − 1), and has no effect at
    initialisation.

    Args:
        width: Size of the embedding.
        classes: Number of classes; 0 for no labels.
        vectors: Size of the vectors; 0 for none.
        images: Channels of the images; 0 for none.
        guidance: Largest guidance weight that is read; 0 for none.

    Raises:
        ArgumentError: A number is negative, or all are 0; a largest weight that is not above 1, or without a condition
            to guide toward; when called, a condition of another form.
    """

    def __init__(self, width: int, classes: int = 0, vectors: int = 0, images: int = 0, guidance: float = 0.0) -> None:
        super().__init__()
        self.classes, self.vectors, self.images, self.guidance = classes, vectors, images, guidance
        sizes = {"label": classes, "vector": vectors, "image": images}
        if min(sizes.values()) < 0 or not any(sizes.values()):
            raise ArgumentError(
                f"classes, vectors and images must be at least 0, and one of them more, got {classes}, {vectors}, {images}"
            )
        if guidance and not 1 < guidance < math.inf:
            raise ArgumentError(f"guidance, the largest weight that is read, is above 1, or 0 for none, got {guidance}")
        self.names = tuple(name for name, size in sizes.items() if size)
        # Labels start with variance 1: initialised to zero, they are learnt several times more slowly.
        self.embed_label = nn.Embedding(classes + 1, width) if classes else None
        if self.embed_label is not None:
            nn.init.zeros_(self.embed_label.weight[classes].detach())
        layers = (nn.Linear(vectors, width), nn.SiLU(), nn.Linear(width, width)) if vectors else ()
        self.embed_vector = nn.Sequential(*layers) if vectors else None
        layers = (nn.Linear(3, width), nn.SiLU(), zero(nn.Linear(width, width))) if guidance else ()
        self.embed_guidance = nn.Sequential(*layers) if guidance else None

    def parts(self, condition: Condition | None) -> dict[str, Tensor | None]:
        """Return the parts of a condition by name.

        Raises:
            ArgumentError: The form differs from the one the network was built for.
        """
        known = (*self.names, GUIDANCE) if self.guidance else self.names
        if isinstance(condition, Mapping):
            given = dict(condition)
            if unknown := sorted(set(given) - set(known)):
                raise ArgumentError(f"this network's condition has the parts {', '.join(known)}, got {unknown[0]!r}")
        elif condition is not None and len(self.names) > 1:
            raise ArgumentError(f"this network's condition is a dictionary of {', '.join(self.names)}, got a tensor")
        else:
            given = {} if condition is None else {self.names[0]: condition}
        for name, value in given.items():
            if name == "label":
                fits = value.ndim == 1 and value.dtype in (torch.int64, torch.int32)
                wanted = "labels are one whole number an example, (batch,), int64 or int32"
            else:
                sizes = {"vector": (self.vectors, 2), "image": (self.images, 4), GUIDANCE: (3, 2)}
                size, dimensions = sizes[name]
                fits = value.ndim == dimensions and value.shape[1] == size and value.is_floating_point()
                wanted = f"each {name} is of real numbers (batch, {size}{', height, width' if dimensions == 4 else ''})"
            if not fits:
                raise ArgumentError(
                    f"the condition's {name} does not fit this network: {wanted}, got {value.dtype} {tuple(value.shape)}"
                )
        return {name: given.get(name) for name in known}

    def check_condition(self, condition: Condition) -> None:
        """Refuse a condition with invalid values before work starts; this synchronises with the device.

        Raises:
            ArgumentError: The form differs from the one the network was built for, a label is out of range, or a value
                is infinite, or NaN beside values that are not.
        """
        for name, value in self.parts(condition).items():
            if value is None or not len(value):
                continue
            if name == "label":
                lowest, highest = int(value.min()), int(value.max())
                if lowest < NONE or highest >= self.classes:
                    raise ArgumentError(
                        f"the label {lowest if lowest < NONE else highest} is out of range: this network has "
                        f"{self.classes} classes, 0 to {self.classes - 1}, and {NONE} says none"
                    )
                continue
            nan = value.isnan().flatten(1)
            if bool(value.isinf().any()) or bool((nan.any(1) & ~nan.all(1)).any()):
                raise ArgumentError(
                    f"the condition's {name} must be finite; NaN throughout says that an example has none"
                )
            if name == GUIDANCE:
                w, first, last = value.nan_to_num(0.5).unbind(1)
                within = ((w >= 1) | nan.all(1)) & (w <= self.guidance) & (first >= 0) & (last <= 1)
                within &= (first <= 0.5) & (last >= 0.5)
                if not bool(within.all()):
                    other = "weight {:g} from {:g} to {:g}".format(*value[~within][0].tolist())
                    raise ArgumentError(
                        f"guidance of {other} was not learnt: this network knows weights from 1 to {self.guidance:g}, that "
                        "begin at a time from 0 to 0.5 and end at one from 0.5 to 1"
                    )

    def forward(self, embedding: Tensor, parts: Mapping[str, Tensor | None]) -> Tensor:
        """Return an embedding (batch, width) with those of labels and vectors added."""
        batch = embedding.shape[0]
        if self.embed_label is not None:
            label, none = parts["label"], self.classes
            if label is None:
                label = torch.full((batch,), none, device=embedding.device)
            embedding = embedding + self.embed_label(torch.where(label == NONE, none, label))
        if self.embed_vector is not None:
            like = next(self.embed_vector.parameters())
            vector = flagged(parts["vector"], (batch, self.vectors), like)
            embedding = embedding + vector[:, -1:] * self.embed_vector(vector[:, :-1])
        if self.embed_guidance is not None:
            asked = flagged(parts[GUIDANCE], (batch, 3), next(self.embed_guidance.parameters()))
            # Strength of guidance from 0 to 1, so that nothing is added at weight 1, as without guidance.
            far = asked[:, -1:] * (asked[:, :1] - 1) / (self.guidance - 1)
            embedding = embedding + far * self.embed_guidance(torch.cat([far, asked[:, 1:3]], dim=1))
        return embedding


def conditions(width: int, classes: int, vectors: int, images: int = 0, guidance: float = 0.0) -> Conditions | None:
    """Return the conditioning of a network; ``None`` without conditions."""
    found = classes or vectors or images or guidance
    return Conditions(width, classes, vectors, images, guidance) if found else None


def parts_of(owned: Conditions | None, condition: Condition | None) -> dict[str, Tensor | None]:
    """Return the parts of a network's condition by name.

    Raises:
        ArgumentError: The network reads no conditions, or another form.
    """
    if owned is not None:
        return owned.parts(condition)
    if condition is not None:
        raise ArgumentError("this network reads no condition: build it with classes=, vectors= or images=")
    return {}


def flagged(values: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return values of a shape (batch, size, …) with a further entry: 1 if an example has them, 0 if not.

    Args:
        values: The values, NaN for an example without; ``None`` if no example has any.
        shape: Their shape.
        like: Tensor with the precision and device to use.
    """
    batch, size, *rest = shape
    if values is None:
        return like.new_zeros(batch, size + 1, *rest)
    if values.shape != shape:
        raise ArgumentError(f"the condition must have the shape {tuple(shape)}, got {tuple(values.shape)}")
    values = values.to(like.dtype)
    lacks = values.isnan().flatten(1).any(1)[(slice(None), *[None] * (len(shape) - 1))]
    flag = (~lacks).to(like.dtype).expand(batch, 1, *rest)
    return torch.cat([torch.where(lacks, 0, values), flag], dim=1)
