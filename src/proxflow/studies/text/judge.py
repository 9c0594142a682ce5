"""A character model that is independent of all networks, and statistics of texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]


class NGrams:
    """An n-gram model of tokens with interpolated Witten–Bell smoothing.

    P(c | h) = (count(hc) + T(h) P(c | h')) / (count(h) + T(h)), with T(h) the number of different tokens seen after h,
    and h' the context without its first token; and finally the uniform distribution. "The Zero-Frequency Problem"
    (Witten & Bell, 1991).

    Args:
        rows: Texts to count in, integers (number, context) or one text (tokens,).
        symbols: Number of tokens of the vocabulary.
        order: Length of the longest contexts.
    """

    def __init__(self, rows: Tensor, symbols: int, order: int = 6) -> None:
        self.symbols = symbols
        text = _two(rows)
        self.grams: list[tuple[Indices, Indices]] = []  # for each length: codes, ascending, and counts
        self.contexts: list[tuple[Indices, Indices, Indices]] = []  # codes, counts, and how many tokens follow
        for length in range(1, order + 2):
            codes, counts = np.unique(_codes(text, length, symbols), return_counts=True)
            before, first, follow = np.unique(codes // symbols, return_index=True, return_counts=True)
            self.grams.append((codes, counts))
            self.contexts.append((before, np.add.reduceat(counts, first), follow))

    def bits(self, rows: Tensor) -> float:
        """Return −log₂ P of texts (number, context), averaged over their tokens; each text starts without a context."""
        text = _two(rows)
        number, context = text.shape
        total = 0.0
        for place in range(context):
            chance = np.full(number, 1 / self.symbols)
            for length, (grams, contexts) in enumerate(zip(self.grams, self.contexts, strict=True), 1):
                if length > place + 1:
                    break
                code = _codes(text[:, place + 1 - length : place + 1], length, self.symbols)[:, 0]
                seen = _found(grams[0], grams[1], code)
                before, follow = (_found(contexts[0], contexts[k], code // self.symbols) for k in (1, 2))
                chance = np.where(before > 0, (seen + follow * chance) / np.maximum(before + follow, 1), chance)
            total -= float(np.log2(chance).sum())
        return float(total / (number * context))


def _two(rows: Tensor) -> Indices:
    found: Indices = rows.long().numpy()
    return found[None] if found.ndim == 1 else found


def _codes(text: Indices, length: int, symbols: int) -> Indices:
    """Return every n-gram of a length as one number, the first token most significant: (number, positions)."""
    places = text.shape[1] - length + 1
    code = np.zeros((len(text), max(0, places)), np.int64)
    for k in range(length):
        code = code * symbols + text[:, k : k + places]
    return code


def _found(known: Indices, values: Indices, wanted: Indices) -> Indices:
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    found: Indices = np.where(known[place] == wanted, values[place], 0)
    return found


def entropy(rows: Tensor) -> float:
    """Return the entropy in bits of the tokens of a text, the mean over texts (number, context).

    It is low for repetitive texts, as in "Masked Diffusion Models are Secretly Time-Agnostic Masked Models" (Zheng et
    al., 2024), arXiv 2409.02908, § 4.
    """
    found = []
    for row in rows:
        share = torch.unique(row, return_counts=True)[1].double() / len(row)
        found.append(float(-(share * share.log()).sum()) / math.log(2))
    return sum(found) / len(found)


def word_share(texts: list[str], known: frozenset[str]) -> float:
    """Return the fraction of known words, without a text's first and last word, which may be cut off."""
    words = [word for text in texts for word in text.split(" ")[1:-1] if word]
    return sum(word in known for word in words) / max(1, len(words))
