from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import needs_fashion_mnist

from proxflow.data import ImageData, fashion_mnist, load, recognise, to_bytes, to_range
from proxflow.data.idx import read_idx
from proxflow.data.mnist import load_mnist
from proxflow.errors import ArgumentError, DataError


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
GOOD = idx(IMAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "tiny"
    place.mkdir()
    (place / "train-images-idx3-ubyte").write_bytes(GOOD)
    (place / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    (place / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:2])))
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:2])))
    return place


# The embedded set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "count", "first_labels", "mean"),
    [("train", 60_000, [5, 0, 4, 1, 9], 33.318421), ("test", 10_000, [7, 2, 1, 0, 4], 33.791224)],
)
def test_mnist_is_complete(split: str, count: int, first_labels: list[int], mean: float) -> None:
    data = load("mnist", split)  # type: ignore[arg-type]
    assert data.name == "mnist"
    assert data.images.shape == (count, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert data.labels[:5].tolist() == first_labels
    assert torch.bincount(data.labels).min() > count / 12
    assert data.images.double().mean().item() == pytest.approx(mean, abs=1e-5)


def test_mnist_with_one_wrong_pixel_is_refused(tmp_path: Path) -> None:
    images = idx(np.zeros((4, 28, 28), dtype=np.uint8))
    (tmp_path / "t10k-images-idx3-ubyte.xz").write_bytes(lzma.compress(images))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.xz.*sha256.*expected 0fa7898d"):
        load_mnist("test", tmp_path)


def test_checksum_is_of_the_uncompressed_content(tmp_path: Path) -> None:
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(GOOD))
    assert torch.equal(read_idx(path, 3, hashlib.sha256(GOOD).hexdigest()), torch.from_numpy(IMAGES))
    with pytest.raises(DataError, match="sha256"):
        read_idx(path, 3, hashlib.sha256(GOOD[:-1] + b"\xff").hexdigest())


# Fashion-MNIST ------------------------------------------------------------------------------------------------------


@needs_fashion_mnist
@pytest.mark.parametrize(
    ("split", "count", "first_labels", "mean"),
    [("train", 60_000, [9, 0, 0, 3, 0], 72.940352), ("test", 10_000, [9, 2, 1, 1, 6], 73.146567)],
)
def test_fashion_mnist_is_complete(split: str, count: int, first_labels: list[int], mean: float) -> None:
    data = load("fashion-mnist", split)  # type: ignore[arg-type]
    assert data.name == "fashion-mnist"
    assert data.images.shape == (count, 1, 28, 28)
    assert data.labels is not None
    assert data.labels[:5].tolist() == first_labels
    assert torch.bincount(data.labels).tolist() == [count // 10] * 10
    assert data.images.double().mean().item() == pytest.approx(mean, abs=1e-5)
    # The same through its folder, and known by what it is.
    assert torch.equal(load(fashion_mnist.FOLDER, split).images, data.images)  # type: ignore[arg-type]
    assert recognise(data.images) == "fashion-mnist"


def test_fashion_mnist_that_is_not_installed_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere.*apt-get install dataset-fashion-mnist.*give the folder"):
        load("fashion-mnist", "train")


def test_fashion_mnist_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FOLDER", folder)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*sha256.*expected c59f468a"):
        load("fashion-mnist", "train")
    monkeypatch.setitem(fashion_mnist.SHA256, "train-images-idx3-ubyte", hashlib.sha256(GOOD).hexdigest())
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.*sha256.*expected bad3541b"):
        load("fashion-mnist", "train")
    labels = hashlib.sha256(idx(LABELS)).hexdigest()
    monkeypatch.setitem(fashion_mnist.SHA256, "train-labels-idx1-ubyte", labels)
    assert load("fashion-mnist", "train").name == "fashion-mnist"
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="expected train-labels-idx1-ubyte"):
        load("fashion-mnist", "train")


def test_sets_are_recognised_by_their_images() -> None:
    images = load("mnist", "test").images.clone()
    assert recognise(images) == "mnist"
    assert recognise(images[:-1]) is None
    images[7, 0, 3, 3] ^= 1
    assert recognise(images) is None
    assert recognise(torch.zeros(4, 3, 28, 28, dtype=torch.uint8)) is None
    emoji = load("emoji", "train").images.clone()
    assert recognise(emoji) == recognise(load("emoji", "test").images) == "emoji"
    assert recognise(emoji[:-1]) is None
    emoji[7, 0, 3, 3] ^= 1
    assert recognise(emoji) is None
    assert recognise(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)) is None


# Folders ------------------------------------------------------------------------------------------------------------


def test_folder_of_plain_and_gzipped_files(folder: Path) -> None:
    train, test = load(folder, "train"), load(str(folder), "test")
    assert train.name == "tiny"
    assert torch.equal(train.images, torch.from_numpy(IMAGES).unsqueeze(1))
    assert train.labels is not None
    assert train.labels.tolist() == [3, 1, 4, 1, 5]
    assert torch.equal(test.images, train.images[:2])
    assert test.labels is not None
    assert test.labels.tolist() == [3, 1]


def test_folder_without_labels_has_none(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    assert load(folder, "train").labels is None


def test_missing_images_list_what_the_folder_holds(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"expected train-images-idx3-ubyte.*holds t10k-images-idx3-ubyte\.gz"):
        load(folder, "train")


def test_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'mnsit'.*expected mnist, fashion-mnist, emoji or"):
        load("mnsit", "train")


def test_an_unreadable_path_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"cannot be read|no data set"):
        load("x" * 5000, "train")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ArgumentError, match="train, test"):
        load("mnist", "validation")  # type: ignore[arg-type]


def test_labels_must_be_as_many_as_images(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    with pytest.raises(DataError, match="5 images but 4 labels"):
        load(folder, "train")


# IDX ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("length", [0, 3, 4, 10, 15, 16, len(GOOD) - 1])
def test_truncated_content_is_refused(tmp_path: Path, suffix: str, length: int) -> None:
    path = tmp_path / f"file{suffix}"
    compress = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path.write_bytes(compress(GOOD[:length]))
    with pytest.raises(DataError, match="file"):
        read_idx(path, 3)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_excess_content_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    compress = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path.write_bytes(compress(GOOD + b"\0"))
    with pytest.raises(DataError, match="expected exactly 60"):
        read_idx(path, 3)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_truncated_and_damaged_compression_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = {".gz": gzip.compress, ".xz": lzma.compress}[suffix](GOOD)
    path = tmp_path / f"file{suffix}"
    for content in (packed[: len(packed) // 2], b"", GOOD, packed[:20] + bytes(9) + packed[29:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="file"):
            read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\x0d\x03" + GOOD[4:],  # floats
        b"\0\0\x08\x01" + GOOD[4:],  # another number of dimensions
        b"\x01" + GOOD[1:],
        GOOD[:4] + struct.pack(">3I", 0, 3, 4),
    ],
)
def test_other_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected"):
        read_idx(path, 3)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_an_absurd_declared_size_allocates_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    content = GOOD[:4] + struct.pack(">3I", *[2**32 - 1] * 3) + b"few"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](content))
    with pytest.raises(DataError, match="would unpack to .*damaged" if suffix else "has 3 bytes after its header"):
        read_idx(path, 3)


def test_decompression_stops_at_the_declared_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(50_000_000)))
    asked = 0
    original = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal asked
        asked += len(content := original(self, size))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError, match="has more bytes"):
        read_idx(path, 3)
    assert asked == len(GOOD) + 1


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing"):
        read_idx(tmp_path / "nothing", 3)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.sampled_from(["", ".gz", ".xz"]))
def test_a_changed_byte_gives_another_array_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"mutant{suffix}"
    content = bytearray({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](GOOD))
    content[position % len(content)] ^= change
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_idx(path, 3).numel() == IMAGES.size


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(content)
    with pytest.raises(DataError, match="arbitrary"):
        read_idx(path, 3)


# Bytes and range ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_levels_survive_the_round_trip(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_range(levels)
    assert values.dtype == torch.float32
    assert values[0] == -1.0
    assert values[255] == 1.0
    assert values[51].item() == pytest.approx(-0.6)
    assert torch.equal(to_bytes(values.to(dtype)), levels)


def test_to_bytes_clamps_and_rounds() -> None:
    step = 2.0 / 255.0
    values = torch.tensor([-7.0, -float("inf"), float("inf"), 1.01, -1.0 + 2.4 * step, -1.0 + 2.6 * step])
    assert to_bytes(values).tolist() == [0, 0, 255, 255, 2, 3]
    assert to_bytes(torch.tensor([-1.0, 0.5, 1.0], dtype=torch.bfloat16)).tolist() == [0, 191, 255]


def test_values_without_a_byte_are_refused() -> None:
    with pytest.raises(ArgumentError, match="1 of 2 values are NaN"):
        to_bytes(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ArgumentError, match="floating point"):
        to_bytes(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="uint8"):
        to_range(torch.zeros(2))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 3, 3), None),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), None),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), None),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.int64)),
    ],
)
def test_image_data_refuses_other_tensors(images: torch.Tensor, labels: torch.Tensor | None) -> None:
    with pytest.raises(ArgumentError, match="must be"):
        ImageData("wrong", images, labels)


def test_importing_data_and_metrics_needs_no_plotting() -> None:
    code = "import sys, proxflow, proxflow.data, proxflow.metrics; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
