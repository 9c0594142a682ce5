"""The report of the text study: bits per character, and scores of samples at each number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from proxflow.studies.pages import Block, Bullets, Heading, Paragraph, Strong, Table, to_markdown
from proxflow.studies.scoreboard import Record

PAIRS = (
    ("masked", "autoregressive"), ("bfn", "masked-as-bfn"), ("masked-as-bfn", "masked"), ("linear", "linear-as-masked"),
    ("linear-as-masked", "masked"), ("fisher-rao", "fisher-rao-as-masked"), ("fisher-rao-as-masked", "masked"),
)  # fmt: skip
"""Pairs of flows: with equal schedules the difference is due to geometry, with equal geometry to the schedule."""

_WHOSE = {
    ("masked", "autoregressive"): "order of the tokens", ("masked-as-bfn", "masked"): "schedule",
    ("linear", "linear-as-masked"): "schedule", ("fisher-rao", "fisher-rao-as-masked"): "schedule",
}  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rows(results: Record, flow: str) -> list[Record]:
    return [row for row in results["rows"] if row["flow"] == flow]


def _flows(results: Record) -> list[str]:
    return list(dict.fromkeys(row["flow"] for row in results["rows"]))


def _bits(results: Record, flow: str) -> list[float]:
    return list({row["seed"]: row["bits_per_character"] for row in _rows(results, flow)}.values())


def bits_table(results: Record) -> Table:
    """Return a table of bits per character, the lowest bound bold, with samples at the most evaluations."""
    flows = _flows(results)
    lowest = min((_mean(_bits(results, f)) for f in flows if _rows(results, f)[0]["bound"] is True), default=0.0)
    rows: list[tuple[str | Strong, ...]] = []
    for flow in flows:
        found, own = _rows(results, flow), _bits(results, flow)
        text = f"{_mean(own):.3f} ± {_mean([row['standard_error'] for row in found]):.3f}"
        most = max(row["nfe"] for row in found)
        last = [row for row in found if row["nfe"] == most]
        best = min(last, key=lambda row: float(row["sample_bits"]))
        rows.append((
            flow, "bound" if found[0]["bound"] is True else "exact", best["sampler"],
            Strong(text) if _mean(own) == lowest and found[0]["bound"] is True else text, f"{most}",
            f"{best['sample_bits']:.3f}", f"{best['sample_entropy']:.3f}", f"{best['word_share']:.3f}",
        ))  # fmt: skip
    real = results["held_out"]
    rows.append((
        "held-out text", "6-gram model", "–", f"{real['bits_per_character']:.3f}", "–", f"{real['sample_bits']:.3f}",
        f"{real['sample_entropy']:.3f}", f"{real['word_share']:.3f}",
    ))  # fmt: skip
    head = ("Flow", "Kind", "Sampler", "bits per character", "NFE", "sample bits", "sample entropy", "word share")
    return Table(head, tuple(rows), 3)


def nfe_table(results: Record, name: str) -> Table:
    """Return a table of a score of samples by flow, sampler and number of evaluations, averaged over seeds."""
    nfes = sorted({row["nfe"] for row in results["rows"]})
    ways = list(dict.fromkeys((row["flow"], row["sampler"]) for row in results["rows"]))
    rows = []
    for flow, sampler in ways:
        entries = []
        for nfe in nfes:
            own = [r[name] for r in _rows(results, flow) if (r["sampler"], r["nfe"]) == (sampler, nfe)]
            entries.append(f"{_mean(own):.3f}" if own else "–")
        rows.append((flow, sampler, *entries))
    rows.append(("held-out text", "–", *[f"{results['held_out'][name]:.3f}"] * len(nfes)))
    return Table(("Flow", "Sampler", *(f"NFE {nfe}" for nfe in nfes)), tuple(rows), 2)


def pairs_table(results: Record) -> Table:
    """Return a table of differences between flows that differ in one respect."""
    flows, rows = _flows(results), []
    nfes = sorted({row["nfe"] for row in results["rows"] if row["flow"] != "autoregressive"})
    middle = nfes[len(nfes) // 2]

    def sample_bits(flow: str) -> str | float:
        own = [r["sample_bits"] for r in _rows(results, flow) if r["nfe"] == middle and r["sampler"] == "stochastic"]
        return _mean(own) if own else "–"

    for one, other in PAIRS:
        if one in flows and other in flows:
            gap = _mean(_bits(results, one)) - _mean(_bits(results, other))
            ours, theirs = sample_bits(one), sample_bits(other)
            samples = f"{ours - theirs:+.3f}" if isinstance(ours, float) and isinstance(theirs, float) else "–"
            rows.append((one, other, _WHOSE.get((one, other), "geometry"), f"{gap:+.3f}", samples))
    return Table(("Flow", "Against", "Differ in", "bits per character", f"sample bits, NFE {middle}"), tuple(rows), 3)


def conditions(results: Record) -> Table:
    """Return a table of the conditions of the measurement."""
    config, data = results["config"], results["data"]
    training = config["training"]
    seconds = {name: told["seconds"] for name, told in results["training"].items()}
    device = results["hardware"].get("processor") or results["hardware"].get("device") or ""
    rows = {
        "Preset": config["preset"],
        "Data": data["note"],
        "Held-out windows": f"{data['windows']} of {config['context']}, {config['draws']} times each for a bound",
        "Network": f"{config['network']}, {results['rows'][0]['parameters']:,} parameters, the same for all",
        "Training": f"{training['steps']:,} steps of {training['batch_size']} texts, in one order for all",
        "Optimiser": f"AdamW, peak rate {training['learning_rate']:g}; weights averaged with decay {training['ema']:g}",
        "Seconds of training": "; ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        "Seeds": ", ".join(map(str, config["seeds"])),
        "Samples": f"{config['samples']} texts for each number",
        "Machine": str(device),
        "Versions": ", ".join(f"{name} {value}" for name, value in results["versions"].items()),
    }
    return Table(("What", "Which"), tuple(rows.items()), 2)


_READING = Bullets(
    (
        """bits per character: of held-out windows, each without what stands before it. bound: an upper bound, with its
        standard error over windows and draws; exact: the likelihood itself.""",
        """sample bits: of samples under a 6-gram model with interpolated Witten–Bell smoothing, counted in the training
        text, which knows nothing of the networks. Low bits with an entropy below that of held-out text are repetition,
        not skill.""",
        """sample entropy: of the characters of a text, in bits. word share: of whole words, those that stand in the
        training text.""",
        """as-masked, as-bfn: the same flow on the schedule on which a belief tells as much of its own token at every time
        as that of masked, or of bfn. Between flows on matched schedules the difference is the geometry's.""",
        """masked weighs its errors as its bound does, bfn too; linear and fisher-rao weigh all times alike.""",
    )
)


def outcome(results: Record) -> list[Block]:
    """Return the outcome."""
    return [bits_table(results), pairs_table(results)]


def block(runs: Sequence[Record]) -> str:
    """Return the kept runs as Markdown for the documentation."""
    blocks: list[Block] = []
    for run in runs:
        blocks += [Heading(3, f"Preset {run['config']['preset']}"), *outcome(run)]
        blocks += [Paragraph("Sample bits at each number of network evaluations:"), nfe_table(run, "sample_bits")]
        blocks += [conditions(run)]
    return to_markdown(blocks) if blocks else "No run is kept under `results/` yet.\n"


def pages(out: Path, results: Record, device: torch.device) -> list[Block]:
    """Return the report; nothing is sampled."""
    shown: list[Block] = []
    for name, texts in results["texts"].items():
        shown += [Paragraph(f"{name} evaluations:"), Bullets(tuple(texts[:4]))]
    return [
        Heading(1, "Flows of classes on text"),
        Paragraph(
            "Bayesian, linear, Fisher–Rao and masked flows, and an autoregressive model, on one transformer with equal "
            "parameters, data, order and number of examples."
        ),
        *outcome(results),
        Heading(2, "Sample bits"),
        nfe_table(results, "sample_bits"),
        Heading(2, "Sample entropy"),
        nfe_table(results, "sample_entropy"),
        Heading(2, "Word share"),
        nfe_table(results, "word_share"),
        Heading(2, "Samples"),
        *shown,
        Heading(2, "How to read this"),
        _READING,
        Heading(2, "Conditions"),
        conditions(results),
    ]
