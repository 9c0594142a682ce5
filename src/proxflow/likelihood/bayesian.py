"""The variational bound of Bayesian flows: the cost of n messages, and of the data given the last belief.

    −log p(x) ≤ Σ_{i=1}^n E KL(S(·|x; α_i) ‖ R(·|belief_{i−1})) + E[−log p(x | belief at t = 1)]

"Bayesian Flow Networks" (Graves et al., 2023), arXiv 2308.07037, §3. In the limit of infinitely many messages the sum
is an integral over time. The first belief is fixed and costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxflow.errors import ArgumentError
from proxflow.examples import Condition, Predict, check_condition, given
from proxflow.flows import BayesianFlow
from proxflow.random import Generator, rand


def bayesian_bound(
    predict: Predict,
    flow: BayesianFlow[Any],
    x: Tensor,
    generator: Generator,
    *,
    draws: int = 16,
    steps: int | None = None,
    condition: Condition | None = None,
) -> Tensor:
    """Estimate an upper bound on −log p(x) of a Bayesian flow, in nats per example, by Monte Carlo.

    Known elsewhere as the negative ELBO. For classes and bins p(x) is the probability of the data; for a
    :class:`~proxflow.BFN` that of their bins in its ``readout``. Bits per dimension are ``Nats(values,
    dimensions).bits_per_dimension``.

    With exact predictions the mean over the data is their entropy: for events of one coordinate with any number of
    messages, for others in the limit of infinitely many.

    Args:
        predict: Function of a belief and times (batch,) that returns the predicted target.
        flow: :class:`~proxflow.BFN`, :class:`~proxflow.DiscretisedBFN` or :class:`~proxflow.DiscreteBFN`.
        x: Data (batch, *event), real numbers in [−1, 1] or int64 classes.
        generator: Random generator of times and noise, on the device of ``x``. With
            :class:`~proxflow.random.SampleStreams` an example's result does not depend on its batch.
        draws: Times per example, one in each of ``draws`` equal parts of [0, 1]; the cost is draws + 1 evaluations.
        steps: Number n of messages; ``None`` takes the limit of infinitely many. The bound of n messages is
            that of the sampler with n updates.
        condition: Condition of the predictions, one row per example.

    Returns:
        Nats per example, (batch,), float64.

    Raises:
        ArgumentError: Another kind of flow, data of another kind than the flow's, no data, or a number < 1.
    """
    if not isinstance(flow, BayesianFlow):
        raise ArgumentError(f"bayesian_bound knows BFN, DiscretisedBFN and DiscreteBFN, got {flow}")
    if draws < 1 or (steps is not None and steps < 1):
        raise ArgumentError(f"draws and steps must be at least 1, got {draws} and {steps}")
    if x.ndim < 1 or x.numel() == 0:
        raise ArgumentError(f"there must be data, (batch, *event), got {tuple(x.shape)}")
    check_condition(predict, condition, len(x))
    predict = given(predict, condition)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    dimensions = x[0].numel()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(draws):
        t = ((k + rand(torch.Size([len(x)]), generator, torch.float64, x.device)) / draws).to(dtype)
        if steps is None:
            cost = flow.loss(predict, x, generator, t)
        else:
            cost = flow.n_step_loss(predict, x, generator, steps, (t * steps).floor().clamp(max=steps - 1) / steps)
        total += cost.double()
    return dimensions * (total / draws + flow.reconstruction_loss(predict, x, generator).double())
