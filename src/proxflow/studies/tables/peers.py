"""Other generators of tables, used if installed."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from proxflow.errors import ArgumentError

Rows = np.ndarray[Any, np.dtype[np.float64]]

PEERS = {
    "forest-flow": ("ForestDiffusion", "ForestDiffusionModel, flow, n_t 20, duplicate_K 20, else its defaults"),
    "ctgan": ("ctgan", "CTGAN, 300 epochs, its defaults"),
}
"""Module and settings of each peer."""


def installed(name: str) -> bool:
    """Return whether a peer can be imported."""
    try:
        importlib.import_module(PEERS[name][0])
    except ImportError:
        return False
    return True


def made_by(name: str, train: Rows, number: int, classes: Sequence[int], seed: int) -> Rows:
    """Train a peer on rows and draw from it; both are float64 (number, columns), categories as indices.

    Raises:
        ArgumentError: There is no such peer.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "forest-flow":
            return _forest(train, number, classes, seed)
        if name == "ctgan":
            return _ctgan(train, number, classes, seed)
    raise ArgumentError(f"no peer is called {name!r:.80}: known are {', '.join(PEERS)}")


def _forest(train: Rows, number: int, classes: Sequence[int], seed: int) -> Rows:
    """Forest flows: "Generating and Imputing Tabular Data via Diffusion and Flow-based Gradient-Boosted Trees".

    (Jolicoeur-Martineau et al., 2023), arXiv 2309.09968.
    """
    forest = importlib.import_module("ForestDiffusion").ForestDiffusionModel
    two = [k for k, n in enumerate(classes) if n == 2]
    more = [k for k, n in enumerate(classes) if n > 2]
    np.random.seed(seed)  # noqa: NPY002 - it draws from the global generator
    model = forest(
        train, n_t=20, duplicate_K=20, bin_indexes=two, cat_indexes=more, int_indexes=[], diffusion_type="flow", n_jobs=1,
        seed=seed,
    )  # fmt: skip
    made: Rows = np.asarray(model.generate(batch_size=number), dtype=np.float64)
    return made


def _ctgan(train: Rows, number: int, classes: Sequence[int], seed: int) -> Rows:
    """CTGAN: "Modeling Tabular Data using Conditional GAN" (Xu et al., 2019), arXiv 1907.00503. No missing cells."""
    import torch

    made_of = importlib.import_module("ctgan").CTGAN
    pandas = importlib.import_module("pandas")
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - it draws from the global generator
    names = [f"c{k}" for k in range(len(classes))]
    whole = train[~np.isnan(train).any(1)]
    frame = pandas.DataFrame(whole, columns=names)
    model = made_of(epochs=300, verbose=False, enable_gpu=False)
    model.set_random_state(seed)
    model.fit(frame, [name for name, n in zip(names, classes, strict=True) if n])
    made: Rows = model.sample(number)[names].to_numpy(dtype=np.float64)
    return made
