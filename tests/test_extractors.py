"""Feature extractors: of a network of one's own, of pixels, and of Inception for standard FID."""

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from proxflow.data import load
from proxflow.errors import ArgumentError, CheckpointError
from proxflow.metrics import (
    FeatureExtractor,
    FeatureStatistics,
    class_hits,
    frechet_distance,
    inception_features,
    load_classifier,
    mnist_features,
    pixel_features,
    weights_sha256,
)
from proxflow.metrics.inception import Inception, resize


def images(count, shape=(3, 12, 10), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(360, 7), torch.nn.BatchNorm1d(7))

    def forward(self, x):
        return self.layers(x)


# Any network ----------------------------------------------------------------------------------------------------------


def test_an_extractor_of_any_network():
    network, batch = Network().eval(), images(11)
    extract = FeatureExtractor.of(network, "mine, layer 2", (3, 12, 10))
    assert (extract.name, extract.dimension, extract.sha256) == ("mine, layer 2", 7, weights_sha256(network))
    found = extract(batch, batch_size=4)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    expected = network(batch.float() / 127.5 - 1.0)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(extract(batch, dtype=torch.float32).double(), extract(batch))
    raw = FeatureExtractor.of(network, "bytes", (3, 12, 10), transform=lambda x: x.float())
    torch.testing.assert_close(raw(batch), network(batch.float()).double(), rtol=1e-5, atol=1e-4)


def test_the_checksum_is_of_every_weight_and_of_nothing_else():
    network = Network().eval()
    assert weights_sha256(network) == weights_sha256(Network())
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode() + value.numpy().tobytes())
    assert weights_sha256(network) == digest.hexdigest()
    seen = {weights_sha256(network)}
    for name in ("layers.1.weight", "layers.2.running_var", "layers.2.num_batches_tracked"):
        other = copy.deepcopy(network)
        other.state_dict()[name].view(-1)[-1] += 1
        seen.add(weights_sha256(other))
    seen.add(weights_sha256(copy.deepcopy(network).double()))
    assert len(seen) == 5


def test_networks_that_give_no_features_are_refused():
    with pytest.raises(ArgumentError, match=r"training mode.*eval\(\)"):
        FeatureExtractor.of(Network(), "mine", (3, 12, 10))
    with pytest.raises(ArgumentError, match=r"must return.*\(2, 3, 12, 10\)"):
        FeatureExtractor.of(torch.nn.Identity().eval(), "mine", (3, 12, 10))
    with pytest.raises(ArgumentError, match="name"):
        FeatureExtractor.of(Network().eval(), "", (3, 12, 10))
    extract = FeatureExtractor.of(Network().eval(), "mine", (3, 12, 10))
    for bad in (images(2).float(), images(2, (3, 10, 12)), images(0), images(2)[0]):
        with pytest.raises(ArgumentError):
            extract(bad)


def test_pixels_are_features():
    extract, batch = pixel_features((1, 4, 3)), images(5, (1, 4, 3))
    assert (extract.name, extract.dimension) == ("pixels", 12)
    assert extract.sha256 == hashlib.sha256(b"").hexdigest()
    torch.testing.assert_close(extract(batch), batch.double().flatten(1) / 127.5 - 1.0, rtol=0, atol=1e-6)


def test_the_shipped_extractor_reads_the_layer_before_the_rectifier():
    digits, classifier = load("mnist", "test").images[:40], load_classifier()
    found = mnist_features()(digits)
    assert float(found.min()) < 0.0
    logits = classifier.head(found.float())
    torch.testing.assert_close(logits, classifier(digits / 127.5 - 1.0), rtol=1e-4, atol=1e-4)


def test_class_hits_are_the_accuracy():
    test, classifier = load("mnist", "test"), load_classifier()
    digits, labels = test.images[:1200], test.labels[:1200]
    hits = class_hits(classifier, digits, labels)
    assert hits.dtype == torch.bool
    assert 0.98 < float(hits.double().mean()) <= 1.0
    assert float(class_hits(classifier, digits, (labels + 1) % 10).double().mean()) < 0.02
    for bad in (labels[:-1], labels.float(), labels + 9, labels - 1):
        with pytest.raises(ArgumentError, match="labels must be"):
            class_hits(classifier, digits, bad)


# Inception ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """Random weights in the published layout, drawn by numpy so that they are the same everywhere."""
    draw = np.random.default_rng(12)
    state = {}
    for name, value in sorted(Inception().state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        values = draw.standard_normal(value.shape, dtype=np.float32)
        if name.endswith(("running_var", "bn.weight")):
            values = 0.75 + 0.5 * draw.random(value.shape, dtype=np.float32)
        elif name.endswith("conv.weight"):
            values *= math.sqrt(2.0 / value[0].numel())
        else:
            values *= 0.1
        state[name] = torch.from_numpy(values)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    return state


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(weights, path)
    return path


def test_inception_features_are_those_of_the_reference_tool(file):
    extract = inception_features(file)
    assert (extract.name, extract.dimension) == ("inception-v3-2015-12-05", 2048)
    found = extract(images(2, (3, 40, 56), seed=3))
    assert found.shape == (2, 2048)
    # From torch-fidelity 0.4.0, FeatureExtractorInceptionV3 ("2048"), with these weights and images.
    expected = [
        [
            1.557,
            1.4751,
            4.0715,
            1e-05,
            0.00746,
            0.0,
            2.72269,
            3.32206,
            1.83733,
            0.39644,
            2.06388,
            0.25959,
            0.00064,
            3.18707,
            0.07,
            0.68332,
        ],
        [
            1.61446,
            1.49,
            4.1568,
            0.0002,
            0.01126,
            0.0,
            2.81631,
            3.35939,
            1.83743,
            0.37355,
            2.08024,
            0.23173,
            0.01145,
            3.21409,
            0.06782,
            0.69403,
        ],
    ]
    places = torch.arange(0, 2048, 128)
    torch.testing.assert_close(found[:, places], torch.tensor(expected).double(), rtol=2e-4, atol=2e-4)
    grey = images(2, (1, 40, 56), seed=3)
    torch.testing.assert_close(extract(grey), extract(grey.expand(-1, 3, -1, -1)), rtol=0, atol=0)
    with pytest.raises(ArgumentError, match="RGB or grey"):
        extract(images(2, (2, 8, 8)))


def test_the_checksum_does_not_depend_on_where_the_weights_came_from(file, weights):
    network = Inception()
    network.load_state_dict(weights, strict=False)
    network.Conv2d_1a_3x3.bn.num_batches_tracked += 7  # of training, which changes no feature
    from_network = inception_features(network)
    assert from_network.sha256 == inception_features(file).sha256
    batch = images(1, (3, 20, 20))
    assert torch.equal(from_network(batch), inception_features(file)(batch))


@pytest.mark.parametrize(("old", "new"), [((4, 5), 7), ((9, 6), 4), ((3, 1), 5)])
def test_resizing_is_tensorflows(old, new):
    height, width = old
    image = images(1, (1, height, width), seed=5).double()
    found = resize(image, new)[0, 0]
    rows = image[0, 0].tolist()
    for i in range(new):
        for j in range(new):
            y, x = i * height / new, j * width / new
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = y - top, x - left
            above = rows[top][left] * (1 - u) + rows[top][right] * u
            under = rows[bottom][left] * (1 - u) + rows[bottom][right] * u
            assert float(found[i, j]) == pytest.approx(above * (1 - v) + under * v, abs=1e-3)


def test_resizing_to_the_same_size_changes_nothing():
    image = images(1, (3, 299, 299)).float()
    assert torch.equal(resize(image, 299), image)


def test_the_network_sees_bytes_scaled_about_128(file):
    extract = inception_features(file)
    seen = []
    extract.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    extract(torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(3, 1, 1, 1))
    assert seen[0].shape == (3, 3, 299, 299)
    for value, expected in zip(seen[0], (-1.0, 0.0, 127 / 128), strict=True):
        assert value.unique().tolist() == [expected]


def test_without_weights_it_says_where_they_come_from(tmp_path):
    for bad, error in ((None, ArgumentError), (tmp_path / "pt_inception.pth", CheckpointError)):
        with pytest.raises(error, match=r"pt_inception-2015-12-05-6726825d\.pth.*safetensors.*fid_inception_v3"):
            inception_features(bad)
    with pytest.raises(CheckpointError, match="cannot be read"):
        inception_features(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        inception_features(tmp_path / "broken.safetensors")


def test_other_weights_are_refused(weights):
    def given(change):
        state = dict(weights)
        change(state)
        network = torch.nn.Module()
        network.state_dict = lambda: state
        return network

    name = "Mixed_7c.branch3x3dbl_3b.conv.weight"
    for change, message in (
        (lambda state: state.pop(name), "found nothing"),
        (lambda state: state.update({name: torch.zeros(384, 384, 3, 3)}), r"\(384, 384, 3, 1\), found shape"),
        (lambda state: state.update({name: torch.full((384, 384, 3, 1), math.nan)}), "not finite"),
        (lambda state: state.update({"AuxLogits.fc.weight": torch.zeros(2)}), "unknown AuxLogits"),
    ):
        with pytest.raises(CheckpointError, match=message):
            inception_features(given(change))


def test_frechet_distance_of_synthetic_statistics_in_inceptions_dimension():
    # N(0, diag a²) and N(m, diag b²) in 512 dimensions, sampled exactly: rows ± √n σ e_i have mean 0 and that covariance.
    dimension = 512
    a, b = torch.linspace(0.1, 2.0, dimension).double(), torch.linspace(1.0, 0.5, dimension).double()
    shift = torch.linspace(-0.2, 0.2, dimension).double()

    def samples(deviations):
        rows = torch.diag(deviations) * math.sqrt((2 * dimension - 1) / 2)
        return torch.cat([rows, -rows])

    first, second = FeatureStatistics(dimension), FeatureStatistics(dimension)
    first.update(samples(a))
    for part in torch.split(samples(b) + shift, 300):
        second.update(part)
    expected = float(shift.square().sum() + (a - b).square().sum())
    assert frechet_distance(first.gaussian(), second.gaussian()) == pytest.approx(expected, rel=1e-9)


def test_features_are_not_rounded_to_tensorfloat():
    seen = []

    class Looks(torch.nn.Flatten):
        def forward(self, images):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return super().forward(images)

    before = torch.backends.cudnn.conv.fp32_precision
    FeatureExtractor.of(Looks().eval(), "looks", (1, 2, 2))
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"
