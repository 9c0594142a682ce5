"""Python as it is used: arrays, double precision, data sets and loaders, paths as text, networks with further inputs."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import proxflow
from proxflow import GPFN, ClassPredictor, DiscreteBFN, Examples, PointPredictor, TrainingConfig, build
from proxflow.data.kinds.image import Image as ImageKind
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.examples import examples_of

CONFIG = TrainingConfig(steps=3, batch_size=8)
ROWS = np.random.default_rng(0).normal(size=(64, 2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None]], 1))


class Tokens(nn.Module):
    def __init__(self, classes=27):
        super().__init__()
        self.layer = nn.Linear(classes, classes)

    def forward(self, x, t):
        return self.layer(x)


def trained(data, **settings):
    torch.manual_seed(0)
    flow = GPFN()
    return proxflow.fit(PointPredictor(Net(), flow), flow, data, CONFIG, **settings)


class Pairs(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index], index % 4


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        ROWS.astype(">f8"),
        np.asfortranarray(ROWS),
        ROWS[::-1],
        torch.from_numpy(ROWS),
        Examples(torch.from_numpy(ROWS).float()),
        TensorDataset(torch.from_numpy(ROWS)),
        DataLoader(TensorDataset(torch.from_numpy(ROWS)), batch_size=4, shuffle=True),
    ],
    ids=["array", "big-endian", "fortran", "reversed", "float64", "examples", "dataset", "loader"],
)
def test_every_form_of_the_same_data_trains_the_same(data):
    expected = trained(torch.from_numpy(ROWS[::-1].copy() if data is not ROWS and _reversed(data) else ROWS).float())
    assert trained(data).losses == pytest.approx(expected.losses, rel=1e-5)


def _reversed(data):
    return isinstance(data, np.ndarray) and bool((np.asarray(data)[0] == ROWS[-1]).all())


def test_a_data_set_of_pairs_gives_the_conditions():
    examples = examples_of(DataLoader(Pairs(), 4), "training")
    assert torch.equal(examples.x, torch.from_numpy(ROWS))
    assert examples.condition.tolist() == [k % 4 for k in range(64)]
    again = examples_of((ROWS, np.arange(64, dtype=np.uint16)), "training")
    assert again.condition.tolist() == list(range(64))


class Triples(Pairs):
    def __getitem__(self, index):
        return ROWS[index], 1, 2


class Ragged(Pairs):
    def __getitem__(self, index):
        return np.zeros(index + 1)


class Words(Pairs):
    def __getitem__(self, index):
        return "word"


class Gives(torch.utils.data.Dataset):
    """Whatever a function gives for an index."""

    def __init__(self, give, number=40):
        self.give, self.number = give, number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return self.give(index)


PICTURES = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def images(data, classes=0, **settings):
    network = f"unet:channels=8,multipliers=1,patch=4{f',classes={classes}' if classes else ''}"
    return proxflow.build((1, 8, 8), network=network).fit(data, steps=1, batch_size=4, **settings)


def broken(index):
    if index == 5:
        raise KeyError("x")
    return PICTURES[index]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Gives(lambda k: {"image": PICTURES[k], "label": 1}),
            "a dictionary of image, label: wrap it to give two of these",
        ),
        (Gives(lambda k: (PICTURES[k], None if k == 3 else 1)), "labels as whole numbers, got None: .* −1 for none"),
        (Gives(lambda k: (PICTURES[k], "cat")), "labels as whole numbers, got 'cat'"),
        (Gives(broken), "training data set: reading its example 5 raised KeyError: 'x'"),
        (Gives(broken, 11), "reading its example 5 raised"),  # which one of the first looks meets
        (Gives(broken, 0), "training data set Gives is empty"),
        (Gives(lambda k: PICTURES[k].float() / 255), r"\(255 \* x\).round\(\).to\(torch.uint8\) of values in \[0, 1\]"),
        (Gives(lambda k: PICTURES[k].movedim(0, -1)), r"these \(8, 8, 1\); bring the channels first"),
        (Gives(lambda k: Pillow.fromarray(PICTURES[k, 0].numpy()).convert("RGBA")), "the mode RGBA: let the data set"),
    ],
)
def test_items_of_a_data_set_that_cannot_be_read_are_named(data, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        images(data)
    assert "\n" not in str(caught.value)


def test_pictures_of_pillow_are_read_as_their_bytes():
    drawn = Gives(lambda k: (Pillow.fromarray(PICTURES[k, 0].numpy()), -1 if k == 3 else k % 2))
    found = examples_of(drawn, "training")
    assert torch.equal(found.x, PICTURES)
    assert found.condition[3] == -1
    colours = Gives(lambda k: Pillow.fromarray(PICTURES[k].expand(3, -1, -1).movedim(0, -1).numpy().copy()))
    assert torch.equal(examples_of(colours, "training").x, PICTURES.expand(-1, 3, -1, -1))
    assert images(drawn, classes=2).predictor is not None


@pytest.mark.parametrize("workers", [None, 0])
def test_a_conditional_network_is_not_trained_without_conditions(workers):
    for data in (PICTURES, Gives(lambda k: PICTURES[k])):
        with pytest.raises(ArgumentError, match="network is conditional, and the data have no condition"):
            images(data, classes=3, workers=workers)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Triples(), "gives 3 things"),
        (Ragged(), "of one shape"),
        (Words(), "of one shape"),
        (iter([1]), "a data set with a length, got list_iterator"),
        (ROWS.astype(str), "got ndarray"),
        (ROWS.astype(complex), "got ndarray"),
        ("points.npy", "got str"),
        (None, "got NoneType"),
        (torch.eye(4).to_sparse(), r"give its to_dense\(\)"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(data, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        trained(data)
    assert "\n" not in str(caught.value)


def test_the_count_that_is_too_small_is_named():
    model = proxflow.build((2,), network="mlp:width=8")
    with pytest.raises(ArgumentError, match=r"^the number of samples must be at least 1, got -1$"):
        model.sample(-1)
    with pytest.raises(ArgumentError, match=r"^the batch size must be at least 1, got 0$"):
        model.sample(2, batch_size=0)


def test_flow_and_predictor_the_wrong_way_round_are_refused():
    with pytest.raises(ArgumentError, match=r"a predictor, a module, and then a flow .*, got GPFN and PointPredictor"):
        proxflow.fit(GPFN(), PointPredictor(Net(), GPFN()), ROWS, CONFIG)


def test_a_folder_may_be_text(tmp_path):
    trained(ROWS, folder=str(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.parametrize(("network", "x"), [("float32", "float64"), ("float64", "float32")])
def test_likelihoods_take_data_and_networks_of_two_precisions(network, x):
    flow = GPFN()
    predictor = PointPredictor(Net(), flow).to(getattr(torch, network)).eval()
    data = torch.from_numpy(ROWS[:8])
    found = proxflow.ode_log_likelihood(predictor, flow, data.to(getattr(torch, x)), steps=8).log_prob
    same = proxflow.ode_log_likelihood(predictor, flow, data.to(getattr(torch, network)), steps=8).log_prob
    torch.testing.assert_close(found, same, rtol=0, atol=1e-3)
    assert flow.loss(predictor, data.to(getattr(torch, x)), torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_tokens_of_any_integer_type_are_classes(dtype):
    flow, tokens = DiscreteBFN(27, max_sqrt_beta=0.75), torch.arange(64).reshape(16, 4) % 27
    torch.manual_seed(0)
    losses = proxflow.fit(ClassPredictor(Tokens()), flow, tokens.to(dtype), CONFIG).losses
    torch.manual_seed(0)
    assert losses == proxflow.fit(ClassPredictor(Tokens()), flow, tokens, CONFIG).losses


@pytest.mark.parametrize("value", [27, -1, 300])
def test_a_class_out_of_range_is_refused_before_work(value, tmp_path):
    flow, tokens = DiscreteBFN(27, max_sqrt_beta=0.75), torch.zeros(16, 4, dtype=torch.long)
    tokens[15, 3] = value
    with pytest.raises(ArgumentError, match=f"classes 0 to 26, got {value}"):
        proxflow.fit(ClassPredictor(Tokens()), flow, tokens, CONFIG, folder=tmp_path / "run")
    with pytest.raises(ArgumentError, match=f"classes 0 to 26, got {value}"):
        flow.loss(ClassPredictor(Tokens()), tokens, torch.Generator())
    assert not (tmp_path / "run").exists()


def test_mixed_data_out_of_range_are_refused_before_work():
    ends = proxflow.ProductEndpoints(((proxflow.GaussianEndpoints(), 1), (proxflow.CategoricalEndpoints(3), 1)))
    flow = GPFN(proxflow.KL(), endpoints=ends)
    for bad, message in ((3.0, "classes 0 to 2, got 3"), (0.5, "whole numbers, got 0.5")):
        data = torch.zeros(8, 2)
        data[5, 1] = bad
        with pytest.raises(ArgumentError, match=message):
            proxflow.fit(nn.Linear(1, 1), flow, data, CONFIG)


class Labelled(nn.Module):
    """A network of one's own whose further input is no "condition"."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(4, 8), nn.Linear(11, 2)

    def forward(self, x, t, y=None):
        return self.layer(torch.cat([x, t[:, None], self.embed(y)], 1))


class Several(Labelled):
    def forward(self, x, t, y, weight):
        return weight[:, None] * super().forward(x, t, y)


def test_further_inputs_of_a_network_come_with_one_argument():
    flow, y = GPFN(), torch.arange(10) % 4
    x = torch.from_numpy(ROWS[:10]).float()
    predictor = PointPredictor(Labelled(), flow)
    alone = flow.loss(predictor, x, torch.Generator().manual_seed(0), condition=y)
    named = flow.loss(predictor, x, torch.Generator().manual_seed(0), condition={"y": y})
    assert torch.equal(alone, named)
    samples = proxflow.sample(predictor, flow, (10, 2), condition=y, batch_size=4)
    by_one = torch.cat([proxflow.sample(predictor, flow, (1, 2), condition=y[k : k + 1], first=k) for k in range(10)])
    torch.testing.assert_close(samples, by_one)
    assert proxflow.fit(predictor, flow, (x, y), CONFIG).losses

    several = PointPredictor(Several(), flow)
    both = {"y": y, "weight": torch.ones(10)}
    assert proxflow.sample(several, flow, (10, 2), condition=both, nfe=2).shape == (10, 2)
    with pytest.raises(ArgumentError, match="dictionary with these names"):
        proxflow.sample(several, flow, (10, 2), condition=y)
    with pytest.raises(ArgumentError, match="no parameter 'z'"):
        proxflow.sample(several, flow, (10, 2), condition={**both, "z": y})


class Other(Net):
    """Another network with the same weights."""


class TestFolder:
    """A folder is what it says: what went into a training stands with its checkpoints."""

    def begun(self, folder, flow=None, data=ROWS, config=CONFIG, predictor=None, **settings):
        torch.manual_seed(0)
        flow = flow or GPFN()
        return proxflow.fit(predictor or PointPredictor(Net(), flow), flow, data, config, folder=folder, **settings)

    def test_the_same_goes_on(self, tmp_path):
        first = self.begun(tmp_path)
        assert self.begun(tmp_path).losses == first.losses

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": -ROWS}, "other data"),
            ({"data": (ROWS, np.zeros(64, dtype=np.int64))}, "other data"),
            ({"held_out": ROWS[:8]}, "other held-out data"),
            ({"flow": GPFN(weight_floor=0.5)}, "other flow.*weight_floor=0.5"),
            ({"flow": proxflow.Diffusion()}, "other flow"),
            ({"predictor": PointPredictor(Net(), GPFN(), parameterisation="v")}, "other predictor.*'v'"),
            ({"predictor": PointPredictor(Net(), GPFN(), clip=(-9, 9))}, "other predictor"),
            ({"predictor": PointPredictor(Other(), GPFN())}, r"other predictor.*Other"),
            ({"config": TrainingConfig(steps=3, batch_size=8, ema=0.5)}, "ema = 0.999, not 0.5"),
            ({"config": TrainingConfig(steps=2, batch_size=8)}, "done 3 steps already"),
        ],
    )
    def test_other_things_are_refused_by_name(self, tmp_path, change, message):
        self.begun(tmp_path)
        with pytest.raises(CheckpointError, match=message):
            self.begun(tmp_path, **change)

    def test_longer_with_another_rate_and_batch(self, tmp_path):
        self.begun(tmp_path)
        result = self.begun(tmp_path, config=TrainingConfig(steps=7, batch_size=16, learning_rate=1e-4))
        assert [(s["step"], s["seen"], s["batch_size"]) for s in result.stages] == [(0, 0, 8), (3, 24, 16)]
        assert [s["step"] for s in result.sessions] == [0, 3]
        # The order of the data goes on: no example is left out of an epoch or comes twice.
        seen = []

        class Spy(GPFN):
            def loss(self, predict, x, generator, t=None):
                seen.extend(map(tuple, x.tolist()))
                return super().loss(predict, x, generator, t)

        for steps, size in ((3, 8), (5, 20)):
            self.begun(tmp_path / "spy", flow=Spy(), config=TrainingConfig(steps=steps, batch_size=size))
        assert len(seen) == len(set(seen)) == 64


def test_a_few_held_out_rows_that_lie_close_together_are_no_reason_to_refuse():
    """Two rows may have a standard deviation near 0 by chance: only the data that are trained on tell place and scale."""
    close = np.full((2, 2), 1.5) + np.array([[0.0], [1e-3]])
    assert np.isfinite(trained(ROWS, held_out=close).losses).all()


@pytest.mark.parametrize(
    "form", [ROWS, DataLoader(Pairs()), (ROWS, np.arange(64) % 4), TensorDataset(torch.from_numpy(ROWS))]
)
def test_a_model_is_built_for_and_trained_on_whatever_fit_takes(form):
    labelled = isinstance(form, DataLoader | tuple)
    network = "mlp:width=8,depth=1,classes=4" if labelled else "mlp:width=8,depth=1"
    wanted = proxflow.build(torch.from_numpy(ROWS), network=network, seed=0)
    made = proxflow.build(form, network=network, seed=0)
    assert made.data == wanted.data
    trained = made.fit(form, steps=2, batch_size=8)
    assert trained.sample(2, nfe=2).shape == (2, 2)
    with pytest.raises(ArgumentError, match="have the shape"):
        made.fit(np.zeros((4, 3)))


def test_examples_take_arrays():
    examples = Examples(ROWS, np.arange(64, dtype=">i2") % 4)
    assert torch.equal(examples.x, torch.from_numpy(ROWS))
    assert examples.condition.tolist() == [k % 4 for k in range(64)]
    with pytest.raises(ArgumentError, match="x is a tensor or array with one row an example, got list"):
        Examples([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 2.5}, "number of samples, .* must be whole numbers"),
        ({"number": "3"}, "number of samples, .* must be whole numbers"),
        ({"nfe": 2.5}, "number of network evaluations must be a whole number of at least 1, got 2.5"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"start": [[0.0, 0.0]] * 3}, "start has the shape of the samples, .* got list"),
        ({"start": torch.full((3, 2), torch.nan)}, "start .* holds NaN or infinite"),
        ({"times": [0, 0.5, float("nan")], "nfe": 3}, "times must be 3 numbers increasing from 0"),
        ({"times": 0.5}, "times must be 2 numbers increasing from 0"),
        ({"guidance": "2"}, "weight of guidance must be"),
        ({"guidance": 2.0, "interval": 0.9}, "interval of guidance is two times"),
    ],
)
def test_a_number_of_another_type_is_refused_in_one_sentence(settings, message):
    model = proxflow.build((2,), network="mlp:width=8,depth=1,classes=4")
    settings = {"number": 3, "nfe": 2, "condition": torch.tensor([0, 1, 2]), **settings}
    with pytest.raises(ArgumentError, match=message):
        model.sample(settings.pop("number"), **settings)


def test_arrays_are_starts():
    model = proxflow.build((2,), network="mlp:width=8,depth=1")
    start = np.random.default_rng(1).normal(size=(3, 2))
    assert torch.equal(model.sample(3, nfe=2, start=start), model.sample(3, nfe=2, start=torch.from_numpy(start)))


def test_training_takes_whole_numbers_of_steps():
    for name in ("steps", "batch_size", "warmup_steps", "seed"):
        for wrong in (1.5, "10", None):
            with pytest.raises(ArgumentError, match=f"{name} must be a whole number"):
                TrainingConfig(**{name: wrong})
    assert type(TrainingConfig(steps=np.int64(7)).steps) is int


def test_classes_of_data_and_network_agree():
    for number in (2, 4):
        with pytest.raises(ArgumentError, match=f"3 classes and the network is built for {number}"):
            build(ImageKind((1, 8, 8), ("a", "b", "c")), network=f"unet:classes={number}")


def test_an_image_too_small_for_its_network_is_refused_when_built():
    with pytest.raises(ArgumentError, match="one place of 8 channels"):
        build((1, 4, 4), network="unet:channels=8,multipliers=1,patch=4")
    build((1, 4, 4), network="unet:channels=16,multipliers=1,patch=4").fit(
        torch.zeros(2, 1, 4, 4, dtype=torch.uint8), steps=1, batch_size=1
    )


def test_a_device_that_is_not_there_is_refused():
    for device in ("foo", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(ArgumentError, match=f"device {device!r} cannot be used here"):
            trained(ROWS, device=device)


def test_a_trained_model_is_trained_further():
    model = proxflow.build(ROWS, network="mlp:width=8", seed=0).fit(ROWS, steps=2, batch_size=8)
    before = {name: tensor.clone() for name, tensor in model.predictor.state_dict().items()}
    further = model.fit(ROWS, steps=3, batch_size=8, learning_rate=0.01)
    assert all(p.requires_grad for p in further.predictor.parameters())
    changed = [not torch.equal(tensor, before[name]) for name, tensor in further.predictor.state_dict().items()]
    assert any(changed)


def test_frozen_weights_stay_so_in_what_is_returned():
    model = proxflow.build(ROWS, network="mlp:width=8", seed=0)
    name, frozen = next(iter(model.predictor.named_parameters()))
    frozen.requires_grad_(False)
    learnt = {n: p.requires_grad for n, p in model.fit(ROWS, steps=2, batch_size=8).predictor.named_parameters()}
    assert not learnt.pop(name)
    assert all(learnt.values())


def test_a_default_of_double_precision_trains():
    torch.set_default_dtype(torch.float64)
    try:
        model = proxflow.build(ROWS, network="mlp:width=8", seed=0).fit(ROWS, steps=2, batch_size=8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.sample(2, nfe=2).isfinite().all()


def test_a_predictor_of_another_path_is_neither_trained_nor_sampled():
    early = GPFN(schedule=proxflow.Linear(0.6))
    predictor = PointPredictor(proxflow.nn.MLP((2,), width=8), early)
    with pytest.raises(ArgumentError, match=r"made for the path Linear\(final=0.6\).*, and the flow has Linear"):
        proxflow.sample(predictor, GPFN(), (3, 2), nfe=2)
    with pytest.raises(ArgumentError, match="made for the path"):
        proxflow.fit(predictor, GPFN(), ROWS, TrainingConfig(steps=1, batch_size=8))
    coupled = GPFN(schedule=proxflow.Linear(0.6), divergence=proxflow.Wasserstein2())
    assert proxflow.sample(predictor, coupled, (3, 2), nfe=2).shape == (3, 2)
