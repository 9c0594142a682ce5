"""Descriptions of models: Markdown model cards with use, training and scores, and a table for notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxflow.models import spec
from proxflow.runtime.escape import markdown

if TYPE_CHECKING:
    from proxflow.models.model import Model

_SCORES = ("frechet", "floor", "kid", "precision", "recall", "density", "coverage", "diversity")


def card(model: Model, results: Sequence[dict[str, Any]] = ()) -> str:
    """Return a model card in Markdown: what the model is, how to use it, its training and its scores.

    Args:
        model: The model.
        results: Records of ``proxflow evaluate``.
    """
    known, word = model.provenance, model.data.examples_word
    trained = _named(known, "training")
    lines = [
        "---",
        "library_name: proxflow",
        *(["pipeline_tag: unconditional-image-generation"] if word == "images" else []),
        "tags: [proxflow, generative-model, proximal-flow]",
        "---",
        "",
        f"# {markdown(spec.word(model.flow))}, {word} of shape {' × '.join(map(str, model.shape))}",
        "",
        "A proximal flow network: it begins with a vague belief and improves it step by step.",
        "",
        "```python",
        "from proxflow.models import Model",
        "",
        'model = Model.from_pretrained("THIS MODEL")',
        f"{word} = model.sample(64, nfe=20, seed=0)",
        "```",
        "",
        "## How it was trained",
        "",
        *[
            f"- {name}: {markdown(str(known[name]))}"
            for name in ("data", "held_out", "steps", "seconds", "held_out_loss")
            if name in known
        ],
        *[f"- {markdown(name)}: {markdown(str(value))}" for name, value in trained.items() if name not in known],
        *[
            f"- {markdown(name)}: {markdown(str(value))}"
            for part in ("hardware", "versions")
            for name, value in _named(known, part).items()
        ],
        "",
        *[
            f"- {name}: `{spec.word(part)}`"
            for name, part in (("network", model.network), ("predictor", model.predictor))
        ],
        "",
        "## Results",
        "",
    ]
    if not results:
        return "\n".join([*lines, "None were measured. `proxflow evaluate` measures them.", ""])
    shown = [name for name in _SCORES if any(isinstance(record.get(name), (int, float)) for record in results)]
    lines += ["| " + " | ".join(("sampler", "evaluations", "seed", *shown)) + " |", "|" + " --- |" * (3 + len(shown))]
    for record in results:
        numbers = [f"{record[name]:.4g}" if record.get(name) is not None else "–" for name in shown]
        lines.append(
            "| "
            + " | ".join((*(markdown(str(record.get(k, "–"))) for k in ("sampler", "nfe", "seed")), *numbers))
            + " |"
        )
    conditions = dict.fromkeys(
        f"{record.get('samples', '?')} {word} against {record.get('reference', 'an unnamed reference')}, features "
        f"{record.get('extractor', 'unnamed')}"
        for record in results
    )
    return "\n".join([*lines, "", "Measured by `proxflow evaluate`: " + markdown("; ".join(conditions)) + ".", ""])


def as_html(model: Model) -> str:
    """Return HTML for a notebook: parts and sizes of a model, its training data and training time."""
    known = model.provenance
    parameters = sum(p.numel() for p in model.predictor.parameters())
    rows = {
        "examples": f"{model.data.examples_word} of shape {' × '.join(map(str, model.shape))}",
        "classes": ", ".join(model.classes[:10]) + (" …" if len(model.classes) > 10 else ""),
        "flow": spec.word(model.flow),
        "network": f"{spec.word(model.network)}, {parameters:,} parameters",
        "predictor": spec.word(model.predictor),
        **{
            name.replace("_", " "): str(known[name])
            for name in ("data", "steps", "seconds", "held_out_loss")
            if name in known
        },
        **{name: str(value) for name, value in _named(known, "versions").items() if name in ("proxflow", "torch")},
    }
    lines = [
        f"<tr><th>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
        if value
    ]
    return f"<b>Model</b><table>{''.join(lines)}</table>"


def _named(known: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return a mapping within a model's provenance; empty if it is not a mapping."""
    found = known.get(part)
    return found if isinstance(found, Mapping) else {}
