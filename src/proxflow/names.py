"""Names: what the command line and files call things, and where these things are. Imports no torch.

Everything that can be named stands here once: help, building, loading and the titles of reports follow from it. An installed
package adds names through an entry point of the group ``proxflow.divergences``, ``proxflow.samplers``, ``proxflow.networks``
or ``proxflow.kinds``, whose value is ``module:Class``. A file may hold names alone, never an import path.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from proxflow.errors import ArgumentError

OPEN = ("divergences", "samplers", "networks", "kinds")
"""Groups that installed packages may add names to, by entry points of the group ``proxflow.GROUP``."""


@dataclass(frozen=True)
class Name:
    """One name: what it stands for.

    Args:
        target: ``module:Class`` in this package, or of an entry point.
        line: What it is, in one line; of an entry point the first line of the class's docstring, read when it is loaded.
        settings: Fields of the class that the name fixes to other values than their defaults: a preset.
        package: The package that added it; this one where empty.
    """

    target: str
    line: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""

    def load(self) -> Any:
        """Import the class.

        Raises:
            ArgumentError: It is another package's and cannot be imported; the message names the package.
        """
        module, _, attribute = self.target.partition(":")
        if not self.package:
            return getattr(import_module(module), attribute)
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, SyntaxError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise ArgumentError(
                f"{self.target}, which the package {self.package} adds, cannot be imported: {error}"
            ) from error


BUILT_IN: dict[str, dict[str, Name]] = {
    "divergences": {
        "w2": Name("proxflow.divergences:Wasserstein2", "Wasserstein-2: straight lines; rectified flow"),
        "kl": Name("proxflow.divergences:KL", "Kullback–Leibler, D(p ‖ ·): precisions mix"),
        "reverse-kl": Name("proxflow.divergences:ReverseKL", "reverse Kullback–Leibler, D(· ‖ p): moments mix"),
        "fisher-rao": Name("proxflow.divergences:FisherRao", "Fisher–Rao: geodesics of the Fisher information"),
    },
    "schedules": {
        "linear": Name("proxflow.paths:Linear", "τ(t) = final · t"),
        "cosine": Name("proxflow.paths:Cosine", "τ(t) = sin²(πt/2): slow at both ends"),
        "shifted": Name("proxflow.paths:Shifted", "linear with its log-odds shifted, as in large image models"),
    },
    "kinds": {
        "image": Name("proxflow.data.kinds.image:Image", "images: MNIST, folders of pictures or IDX files, .npz"),
        "vector": Name("proxflow.data.kinds.vector:Vector", "rows of real numbers: .npy, .npz, .csv"),
    },
    "networks": {
        "unet": Name("proxflow.nn:UNet", "U-Net for pictures"),
        "mlp": Name("proxflow.nn:MLP", "multilayer perceptron for rows of numbers"),
    },
}
"""The library's own names by group."""


@cache
def added(group: str) -> dict[str, Name]:
    """Names that installed packages add to a group; one that stands here already is left out."""
    if group not in OPEN:
        return {}
    from importlib.metadata import entry_points

    found: dict[str, Name] = {}
    for point in entry_points(group=f"proxflow.{group}"):
        package = point.dist.name if point.dist is not None else "an installed package"
        if point.name not in BUILT_IN[group]:
            found.setdefault(point.name, Name(point.value, package=package))
    return found


def known(group: str) -> dict[str, Name]:
    """All names of a group, the library's own first."""
    return {**BUILT_IN[group], **added(group)}


def find(group: str, name: str) -> Name:
    """The entry of a name.

    Raises:
        ArgumentError: There is none; the message lists near names and says where names come from.
    """
    names = known(group)
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    origin = f"; a package adds one by an entry point of the group proxflow.{group}" if group in OPEN else ""
    raise ArgumentError(
        f"no {group.removesuffix('s')} is called {name!r:.80}: {hint} (proxflow list {group} shows all{origin})"
    )
