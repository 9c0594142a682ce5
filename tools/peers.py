"""The comparison with peers (``benchmarks.peers``, results/peers/results.json) as tables for the documentation."""

from __future__ import annotations

import math
import statistics
from typing import Any

from proxflow.studies.pages import Block, Paragraph, Strong, Table, to_markdown
from proxflow.studies.scoreboard import distance

OURS = "proxflow"
JUDGED = (1, 2, 4, 10, 20)
"""Evaluations at which the comparison is judged, if it has them."""


def best(rows: list[dict[str, Any]], metric: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the row of each system's best sampler, by system and evaluations."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["system"], row["nfe"])
        if key not in found or row[metric] < found[key][metric]:
            found[key] = row
    return found


def quality(rows: list[dict[str, Any]], metric: str) -> Table:
    """Return a table of each system's best score at each number of evaluations, with the sampler."""
    found = best(rows, metric)
    systems = list(dict.fromkeys(row["system"] for row in rows))
    nfes = sorted({row["nfe"] for row in rows})
    lowest = {nfe: min(found[s, nfe][metric] for s in systems if (s, nfe) in found) for nfe in nfes}

    def entry(system: str, nfe: int) -> str | Strong:
        row = found.get((system, nfe))
        if row is None:
            return "–"
        text = f"{distance(row[metric])} {row['sampler']}"
        return Strong(text) if row[metric] == lowest[nfe] else text

    floor = rows[0]["floor"]
    body = [(system, *(entry(system, nfe) for nfe in nfes)) for system in systems]
    ahead = (
        "best here over best peer",
        *(_ratio([row for (_, n), row in found.items() if n == nfe], metric) for nfe in nfes),
    )
    return Table(("System", *map(str, nfes)), (*body, ahead, ("real data", *(distance(floor) for _ in nfes))), 1)


def _ratio(rows: list[dict[str, Any]], metric: str) -> str:
    """Return the lowest score of this library over that of the peers, with the range over seeds if there are several."""
    ours, theirs = (
        min((row for row in rows if row["system"].startswith(OURS) == own), key=lambda row: row[metric])
        for own in (True, False)
    )
    pairs = zip(ours["runs"].get(metric, ()), theirs["runs"].get(metric, ()), strict=True)
    ratios = [a / b for a, b in pairs]
    seeds = f" ({min(ratios):.2f}–{max(ratios):.2f})" if ratios[1:] else ""
    return f"{ours[metric] / theirs[metric]:.2f}{seeds}"


def cost(rows: list[dict[str, Any]]) -> Table:
    """Return a table of each system's costs: training and memory as ours over theirs, loop over network calls."""
    body = []
    for system, row in {row["system"]: row for row in rows}.items():
        loops = [r["sampler_overhead"] for r in rows if r["system"] == system]
        body.append((system, _rate(row), f"{min(loops):.3f}–{max(loops):.3f}", f"{row['peak_memory_ratio']:.2f}"))
    head = (
        "System",
        "Training steps per second, ours over theirs: median (quartiles) of processes",
        "Sampling loop over its network calls: all samplers",
        "Peak memory, ours over theirs",
    )
    return Table(head, tuple(body), 1)


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return sentences on what this library costs beside the peers, losses included."""
    rows, sentences = results["rows"], []
    networks = [("U-Net", rows)] + ([("perceptron", results["toy_rows"])] if "toy_rows" in results else [])
    for network, some in networks:
        sentences.append(f"Training the {network} is {_speed(some)}")
    loops = [row["sampler_overhead"] for row in rows if row["system"] == "proxflow gpfn-w2"]
    extra = statistics.median(loops) - 1
    sentences.append(f"A run of proxflow gpfn-w2 costs {extra:+.1%} over its network calls, median of its samplers.")
    return sentences


CHANCE = 0.05
"""Significance level of the sign test of which side is slower."""


def _rate(row: dict[str, Any]) -> str:
    """Format training steps per second, ours over theirs: the median of the processes, and their quartiles."""
    ratios = row["runs"]["train_steps_ratio"]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def _slower(row: dict[str, Any]) -> bool:
    """Return whether ours is slower in significantly more processes (a sign test)."""
    ratios: list[float] = row["runs"]["train_steps_ratio"]
    number, below = len(ratios), sum(ratio < 1 for ratio in ratios)
    tail = sum(math.comb(number, k) for k in range(below, number + 1))
    return tail * 0.5**number <= CHANCE


def _speed(rows: list[dict[str, Any]]) -> str:
    """Return which systems train faster, and how ours compares with itself."""
    by_system = {row["system"]: row for row in rows}
    peers = [row for system, row in by_system.items() if not system.startswith(OURS)]
    slower = [f"{row['system']}, {_rate(row)}" for row in peers if _slower(row)]
    verdict = f"slower than {'; '.join(slower)}"
    if not slower:
        least = min(peers, key=lambda row: row["train_steps_ratio"])
        verdict = f"no slower than any peer beyond chance (the lowest ratio is to {least['system']}, {_rate(least)})"
    return f"{verdict}; against itself it measures {_rate(by_system['proxflow gpfn-w2'])}."


def conditions(results: dict[str, Any]) -> str:
    """Return the conditions of the measurement as a paragraph."""
    config, hardware, extractor = results["config"], results["hardware"], results["extractor"]
    task = config.get("task", "mnist")
    libraries = ", ".join(
        f"{name} {results['versions'][name]}"
        for name in ("flow-matching", "torchcfm", "azula", "diffusers", "rectified-flow-pytorch", "torch")
        if name in results["versions"]
    )
    seeds = ", ".join(map(str, config["seeds"][task]))
    absent = f" Not installed, and left out: {', '.join(results['left_out'])}." if results.get("left_out") else ""
    return (
        f"Preset {config['preset']}: {config['steps'][task]:,} training steps of 64 images on one network of each "
        f"objective; seed {seeds}; {config['samples'][task]:,} samples an entry against {results['reference']}; features "
        f"{extractor['name']}, sha256 {extractor['sha256'][:12]}; as many real training images score "
        f"{distance(results['rows'][0]['floor'])} (the floor). {libraries}; {hardware['processor']}, one thread.{absent}"
    )


def summary_block(results: dict[str, Any]) -> str:
    """Return Markdown for the README: quality by evaluations, and how fast the U-Net trains."""
    return to_markdown(
        [
            quality([row for row in results["rows"] if row["nfe"] in JUDGED], "frechet"),
            Paragraph(verdicts(results)[0]),
            Paragraph(conditions(results)),
        ]
    )


def emoji_block(runs: list[dict[str, Any]]) -> str:
    """Return Markdown for docs/peers.md of the run on emoji, if there is one: everything."""
    if not runs:
        return "No run is kept under `results/` yet.\n"
    (results,) = runs
    return to_markdown(
        [
            quality(results["rows"], "frechet"),
            Paragraph(" ".join(verdicts(results))),
            cost(results["rows"]),
            Paragraph(conditions(results)),
        ]
    )


def full_block(results: dict[str, Any]) -> str:
    """Return Markdown for docs/peers.md: everything."""
    toy, config = results["toy_rows"], results["config"]
    blocks: list[Block] = [
        Paragraph("Fréchet distance on MNIST by network evaluations, each system with its best sampler there:"),
        quality(results["rows"], "frechet"),
        Paragraph(" ".join(verdicts(results))),
        Paragraph("What it costs, on the U-Net at batch 64:"),
        cost(results["rows"]),
        Paragraph(conditions(results)),
        Paragraph(
            "Sliced Wasserstein-2 distance on eight Gaussians in the plane, times 100, "
            f"{config['steps']['toy']:,} training steps of 256 points, {config['samples']['toy']:,} samples, mean of seeds "
            f"{', '.join(map(str, config['seeds']['toy']))}:"
        ),
        quality(
            [{**row, "hundredths": 100 * row["sliced_wasserstein"], "floor": 100 * row["floor"]} for row in toy],
            "hundredths",
        ),
        Paragraph("What it costs, on the perceptron at batch 256 (training) and 64 (sampling):"),
        cost(toy),
    ]
    return to_markdown(blocks)
