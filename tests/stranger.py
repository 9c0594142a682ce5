"""A stranger's package: one file outside the repository, found by its entry points, as an installed one is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SOURCE = '''
"""What a stranger adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from proxflow import DiagonalGaussian
from proxflow.data.kinds import Defaults, Kind, Loaded
from proxflow.divergences import Divergence, closed_form, value
from proxflow.examples import Examples
from proxflow.samplers import Deterministic


@dataclass(frozen=True)
class Scaled(Divergence):
    """Wasserstein-2 times a number."""

    scale: float = 1.0
    additive = True
    composes = True


@value(Scaled, DiagonalGaussian)
def _(divergence, p, q):
    return divergence.scale * ((p.mean - q.mean).square() + (p.std - q.std).square()).flatten(1).sum(1)


@closed_form(Scaled, DiagonalGaussian)
def _(divergence, belief, target, over):
    f = over(belief.mean)
    return DiagonalGaussian(torch.lerp(belief.mean, target.mean, f), belief.std + f * (target.std - belief.std))


@dataclass(frozen=True)
class Early(Deterministic):
    """Deterministic steps that are shorter at first."""

    power: float = 2.0

    def times(self, flow, nfe):
        return [(k / nfe) ** self.power for k in range(nfe)]


class Labelled(nn.Module):
    """A line for each label."""

    def __init__(self, shape, *, labels: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.lines = nn.Parameter(torch.ones(labels, *shape))
        self.bias = nn.Parameter(torch.zeros(*shape)) if bias else 0

    def forward(self, x, t, *, end=None, condition=None):
        scale = self.lines.mean(0) if condition is None else self.lines[condition]
        return scale * x + self.bias


@dataclass(frozen=True)
class Angles(Kind):
    """Angles in degrees."""

    turn: float = 360.0

    examples_word = "angles"
    sources = "a file .angles"
    defaults = Defaults(network="labelled", clip=None)

    @classmethod
    def takes(cls, source):
        return source.endswith(".angles")

    @classmethod
    def read(cls, source, *, held_out=0.05, seed=0, **settings):
        with open(source) as file:
            rows = torch.tensor([[float(line)] for line in file])
        return Loaded(cls((1,)), Examples(rows), None, f"{len(rows)} angles")

    def encode(self, stored):
        return stored / self.turn * 2 - 1

    def decode(self, samples):
        return (samples + 1) / 2 * self.turn

    def check_output(self, path, number):
        pass

    def write(self, path, stored):
        path.write_text("".join(f"{float(row)}\\n" for row in stored))

    def preview(self, stored):
        raise NotImplementedError
'''

ENTRIES = {
    "divergences": {"scaled": "Scaled"},
    "samplers": {"early": "Early"},
    "networks": {"labelled": "Labelled"},
    "kinds": {"angles": "Angles"},
}
"""By group, the names that the package adds and its classes."""


def stranger_package(
    folder: Path,
    name: str = "acme",
    source: str = SOURCE,
    entries: Mapping[str, Mapping[str, str]] = ENTRIES,
) -> Path:
    """Write a package into a folder that is to be put on ``sys.path``, in a fresh process by ``PYTHONPATH``.

    Args:
        folder: Where; it is made.
        name: Of the package and its module.
        source: Of the module.
        entries: By group, without ``proxflow.``, names and the attributes of the module that they stand for.
    """
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, found in entries.items():
        lines += [f"[proxflow.{group}]", *(f"{entry} = {name}:{attribute}" for entry, attribute in found.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
