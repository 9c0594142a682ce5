"""Model files of format 1, which held a U-Net's settings and the name of a flow."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from proxflow.config import from_dict
from proxflow.errors import CheckpointError


@dataclass(frozen=True)
class _Config:
    flow: Literal["gpfn-w2", "gpfn-kl", "gpfn-reverse-kl", "gpfn-fisher-rao", "bfn", "bfn-tuned"] = "gpfn-w2"
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    patch: int = 2
    dropout: float = 0.0
    sigma1: float = 0.7
    final: float = 1.0
    coupling: Literal["independent", "ot", "reflow"] = "independent"
    predictor: Literal["point", "long-step", "draw"] = "point"


def translate(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the content of a ``config.json`` of format 1 as one of format 2.

    Raises:
        CheckpointError: A field is unknown or has the wrong type; ``where`` names the file.
    """
    held, known = content.get("model"), [setting.name for setting in fields(_Config)]
    told = f"{where}: expected the settings of a model of format 1 ({', '.join(known)}), got"
    if not isinstance(held, dict):
        raise CheckpointError(f"{told} {held!r:.80}")
    if unknown := sorted(set(held) - set(known)):
        raise CheckpointError(f"{told} the unknown field {unknown[0]!r:.80}")
    old = from_dict(_Config, held, where)
    if old.coupling != "independent" and not old.flow.startswith("gpfn-"):
        raise CheckpointError(f"{where}: {old.flow} begins with one fixed belief, so it has no coupling")
    flow: dict[str, Any] = {"kind": "bfn", "sigma1": old.sigma1 if old.flow == "bfn-tuned" else 1e-3}
    if old.flow.startswith("gpfn-"):
        schedule = {"kind": "linear", "final": old.final}
        flow = {"kind": "gpfn", "divergence": {"kind": old.flow.removeprefix("gpfn-")}, "schedule": schedule}
        if old.coupling != "independent":
            flow["coupling"] = {"kind": old.coupling}
    predictor: dict[str, Any] = {"kind": old.predictor, "clip": [-1.0, 1.0]}
    if old.predictor == "point":
        reference = old.flow == "bfn"
        predictor.update(parameterisation="epsilon" if reference else "x", clip_in_training=reference)
    network = ("channels", "multipliers", "blocks", "attention", "patch", "dropout")
    return {
        "format": 2,
        "flow": flow,
        "network": {"kind": "unet", **{name: getattr(old, name) for name in network}},
        "predictor": predictor,
        "data": {"kind": "image", "shape": content.get("shape")},
        "provenance": content.get("provenance", {}),
        "times": content.get("times", {}),
    }
