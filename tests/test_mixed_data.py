"""Mixed data: a flow over numbers and categories side by side, trained and sampled end to end."""

import pytest
import torch

from proxflow import (
    GPFN,
    CategoricalEndpoints,
    DiagonalGaussian,
    FisherRao,
    GaussianEndpoints,
    GaussianMixture,
    PerPart,
    Product,
    ProductEndpoints,
    ProductPredictor,
    ReverseKL,
    Wasserstein2,
    sample,
)
from proxflow.errors import ArgumentError

ENDPOINTS = ProductEndpoints(((GaussianEndpoints(0.02), 1), (CategoricalEndpoints(3), 1)))

# The law: a category, and a number whose place and spread depend on it.
SHARES = torch.tensor([0.5, 0.3, 0.2])
MEANS = torch.tensor([-1.5, 0.2, 1.5])
STDS = torch.tensor([0.25, 0.5, 0.35])


def rows(n, generator):
    category = torch.multinomial(SHARES, n, replacement=True, generator=generator)
    number = MEANS[category] + STDS[category] * torch.randn(n, generator=generator)
    return torch.stack([number, category.float()], dim=1)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 4)
        )

    def forward(self, features, t):
        angle = 3 * t[:, None]
        return self.layers(torch.cat([features, t[:, None], angle.sin()], dim=1))


@pytest.mark.parametrize(
    "divergence", [ReverseKL(), PerPart((Wasserstein2(), FisherRao()))], ids=["ReverseKL", "W2 and Fisher-Rao"]
)
def test_a_trained_network_recovers_how_category_and_number_depend_on_each_other(divergence):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    flow = GPFN(divergence, endpoints=ENDPOINTS)
    predictor = ProductPredictor(Network(), flow)
    optimiser = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    data, steps = rows(4000, generator), 800
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        batch = data[torch.randint(len(data), (256,), generator=generator)]
        optimiser.zero_grad()
        flow.loss(predictor, batch, generator).mean().backward()
        optimiser.step()
    drawn = sample(predictor, flow, (2000, 2), nfe=40, sampler="deterministic", batch_size=2000)
    number, category = drawn[:, 0], drawn[:, 1]
    assert set(category.tolist()) == {0.0, 1.0, 2.0}
    for k in range(3):
        chosen = number[category == k]
        assert len(chosen) / len(drawn) == pytest.approx(float(SHARES[k]), abs=0.06)
        assert float(chosen.mean()) == pytest.approx(float(MEANS[k]), abs=0.15)
        assert float(chosen.std()) == pytest.approx(float(STDS[k]), abs=0.2)


def test_each_part_begins_and_ends_as_its_own_endpoints_say():
    flow = GPFN(ReverseKL(), endpoints=ENDPOINTS)
    x, t = rows(5, torch.Generator().manual_seed(0)).double(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    prior = flow.prior(x.shape, torch.Generator().manual_seed(1), torch.float64, x.device)
    numbers, classes = flow.belief(x, t, torch.Generator().manual_seed(1)).parts
    torch.testing.assert_close(numbers.mean, (1 - t)[:, None] * prior.parts[0].mean + t[:, None] * x[:, :1])
    certain = torch.nn.functional.one_hot(x[:, 1:].long(), 3)
    weight = t[:, None, None]
    torch.testing.assert_close(classes.probs, (1 - weight) * prior.parts[1].probs + weight * certain)
    assert flow.path is None
    landed = flow.update(prior, flow.endpoints.target(x, prior), t[1], t[4], torch.Generator().manual_seed(2))
    assert torch.equal(landed.split(landed.mode)[1], x[:, 1:].long())


def test_the_loss_is_the_mean_of_the_parts_scores_over_the_columns():
    flow = GPFN(ReverseKL(), endpoints=ProductEndpoints(((GaussianEndpoints(), 3), (CategoricalEndpoints(4), 1))))
    x = torch.tensor([[0.5, -1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    guess = torch.zeros(2, 3, dtype=torch.float64)
    logits = torch.randn(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def predict(belief, t):
        return Product((DiagonalGaussian(guess, torch.ones(()).double()), type(belief.parts[1])(logits)))

    loss = flow.loss(predict, x, torch.Generator().manual_seed(0), t)
    squares = x[:, :3].square().sum(1) * torch.tensor([1.0, 4.0])
    surprise = torch.nn.functional.cross_entropy(logits[:, 0], x[:, 3].long(), reduction="none")
    torch.testing.assert_close(loss, (squares + surprise) / 4)


def test_a_predicted_part_takes_its_own_share_of_the_output():
    flow = GPFN(
        ReverseKL(),
        endpoints=ProductEndpoints(
            ((CategoricalEndpoints(2), 2), (GaussianEndpoints(0.3), 2), (CategoricalEndpoints(3), 2))
        ),
    )

    class Echo(torch.nn.Module):
        def forward(self, features, t):
            return features

    belief = flow.prior((4, 6), torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    coin, numbers, die = ProductPredictor(Echo(), flow)(belief, torch.zeros(4)).parts
    torch.testing.assert_close(coin.logits[..., 0], belief.parts[0].features())
    torch.testing.assert_close(numbers.mean, belief.parts[1].mean)
    assert float(numbers.std.min()) == float(numbers.std.max()) == pytest.approx(0.3)
    torch.testing.assert_close(die.logits, belief.parts[2].features())


def test_what_does_not_fit_is_refused():
    flow = GPFN(ReverseKL(), endpoints=ENDPOINTS)
    for x in (torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match=r"rows \(batch, 2\)"):
            flow.loss(lambda belief, t: belief, x, torch.Generator())
    with pytest.raises(ArgumentError, match="rows of 2 columns"):
        flow.prior((2, 1, 2), torch.Generator(), torch.float32, torch.device("cpu"))
    for parts in ((), ((GaussianEndpoints(), 0),)):
        with pytest.raises(ArgumentError, match="at least one column"):
            ProductEndpoints(parts)
    with pytest.raises(ArgumentError, match="ProductEndpoints"):
        ProductPredictor(Network(), GPFN())
    mixture = GaussianMixture(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(()))
    with pytest.raises(ArgumentError, match="not GaussianMixture"):
        ProductPredictor(torch.nn.Bilinear(1, 1, 1), flow)._part(mixture, torch.zeros(2), 0.0)
    with pytest.raises(ArgumentError, match="must keep the shape"):
        ProductPredictor(Narrow(), flow)(ENDPOINTS.prior((2, 2), *PRIOR), torch.zeros(2))


class Narrow(torch.nn.Module):
    def forward(self, features, t):
        return features[:, :1]


PRIOR = (torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
