"""Hugging Face data sets of pictures, read with the library itself: Arrow folders, parquet files and names on the Hub."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from proxflow import GPFN, PointPredictor, TrainingConfig, fit
from proxflow.cli import main
from proxflow.data import sources
from proxflow.data.kinds import kind_of_source
from proxflow.data.kinds.image import Image
from proxflow.data.prepared import prepare
from proxflow.errors import DataError
from proxflow.examples import Examples, LazyExamples

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NUMBER, NAMES = 12, ["cat", "dog"]


def encoded(k, kind="PNG", size=(10, 12), grey=False):
    pixels = np.random.default_rng(k).integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def files(contents):
    """Pictures as a parquet file of the Hub has them."""
    return [{"bytes": content, "path": None} for content in contents]


def dataset(contents, labels=None, **further):
    features = {"image": datasets.Image()} | ({} if labels is None else {"label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": files(contents)} | ({} if labels is None else {"label": labels})
    features |= {name: feature for name, (feature, _) in further.items()}
    rows |= {name: values for name, (_, values) in further.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def loaded(source, **settings):
    return Image.read(str(source), held_out=0.25, seed=1, **settings)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is fetched, and what the library keeps goes away with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def contents():
    """Twelve pictures, PNG and JPEG, of three sizes, every third of them grey."""
    sizes = ((10, 12), (16, 9), (11, 11))
    return [encoded(k, ("PNG", "JPEG")[k % 2], sizes[k % 3], k % 3 == 0) for k in range(NUMBER)]


LABELS = [k % 2 for k in range(NUMBER)]


@pytest.fixture
def places(tmp_path, contents):
    """The same pictures and classes in every form, and as a folder of pictures in the same order."""
    table = dataset(contents, LABELS)
    table.save_to_disk(str(tmp_path / "disk"))
    # Of the library, as it writes them for the Hub; of pyarrow alone, which knows no pictures.
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for part, name in ((range(6), "train-00000-of-00002"), (range(6, NUMBER), "train-00001-of-00002")):
        table.select(part).to_parquet(str(tmp_path / "hub" / "data" / f"{name}.parquet"))
    (tmp_path / "plain").mkdir()
    plain = pa.table({"photo": files(contents), "label": [NAMES[label] for label in LABELS]})
    parquet.write_table(plain, tmp_path / "plain" / "rows.parquet")
    shutil.copy(tmp_path / "plain" / "rows.parquet", tmp_path / "one.parquet")
    for k, content in enumerate(contents):
        # Classes are folders, so that pictures come in another order, which names undo below.
        place = tmp_path / "folder" / NAMES[LABELS[k]]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k:02d}.{('png', 'jpg')[k % 2]}").write_bytes(content)
    return tmp_path


def test_every_form_gives_the_bytes_of_the_same_pictures_in_a_folder(places):
    for size in (None, 8, 16):
        whole = Image.read(str(places / "folder"), held_out=0, size=size)
        order = [int(path.stem) for path in sources.pictures_of(str(places / "folder")).survey.paths]
        assert whole.train.x.float().std() > 10
        for place in ("disk", "hub", "plain", "one.parquet"):
            found = Image.read(f"arrow:{places / place}", held_out=0, size=size)
            assert found.kind == whole.kind, place
            assert found.kind.classes == tuple(NAMES)
            assert torch.equal(found.train.x[order], whole.train.x), place
            assert torch.equal(found.train.condition[order], whole.train.condition)
            assert "left out: nothing" in found.notes[0]


def test_splits_that_are_not_to_train_on_are_left_out_and_counted(places, contents):
    table = dataset(contents, LABELS)
    splits = datasets.DatasetDict({"train": table.select(range(8)), "test": table.select(range(8, NUMBER))})
    splits.save_to_disk(str(places / "splits"))
    found = loaded(f"arrow:{places / 'splits'}", size=8)
    assert len(found.train) + len(found.held_out) == 8
    assert "left out: rows of other splits: 4 (as test)" in found.notes[0]
    table.select(range(3)).to_parquet(str(places / "hub" / "data" / "test-00000-of-00001.parquet"))
    (places / "hub" / "validation").mkdir()
    table.select(range(3)).to_parquet(str(places / "hub" / "validation" / "0000.parquet"))
    (places / "hub" / "README.md").write_text("# Pictures")
    found = loaded(f"arrow:{places / 'hub'}", size=8)
    assert len(found.train) + len(found.held_out) == NUMBER
    assert "left out: files of other splits: 2 (as data/test-00000-of-00001.parquet)" in found.notes[0]
    datasets.DatasetDict({"test": table, "dev": table}).save_to_disk(str(places / "none"))
    with pytest.raises(
        DataError,
        match=r"the splits test, dev; expected one named train: give arrow:.*none/test to train on it$",
    ):
        loaded(f"arrow:{places / 'none'}")
    assert len(loaded(f"arrow:{places / 'none' / 'test'}").train) == 9
    (places / "tested").mkdir()
    table.to_parquet(str(places / "tested" / "test.parquet"))
    with pytest.raises(DataError, match=r"holds files of other splits alone, as test\.parquet; expected some to train"):
        loaded(f"arrow:{places / 'tested'}")


def test_the_library_draws_no_progress_bars_where_nobody_watches(tmp_path, contents, capfd):
    dataset(contents).to_parquet(tmp_path / "set.parquet")
    datasets.enable_progress_bars()
    capfd.readouterr()
    loaded(f"arrow:{tmp_path / 'set.parquet'}")
    assert capfd.readouterr().err == ""
    assert not datasets.utils.are_progress_bars_disabled()


def test_classes_are_those_of_the_column_that_says_them(tmp_path, contents):
    def found(table):
        shutil.rmtree(tmp_path / "disk", ignore_errors=True)
        table.save_to_disk(str(tmp_path / "disk"))
        return Image.read(f"arrow:{tmp_path / 'disk'}", held_out=0, size=8)

    assert found(dataset(contents)).train.condition is None
    some = found(dataset(contents, [None, -1, *LABELS[2:]]))
    assert some.train.condition.tolist() == [-1, -1, *LABELS[2:]]
    assert "labels that are missing: 2" in some.notes[0]
    assert found(dataset(contents, [None] * NUMBER)).kind.classes == tuple(NAMES)
    texts = found(dataset(contents, label=(datasets.Value("string"), ["b", "a", None] * 4)))
    assert (texts.kind.classes, texts.train.condition[:3].tolist()) == (("a", "b"), [1, 0, -1])
    numbers = found(dataset(contents, label=(datasets.Value("int16"), [7, 5, 7] * 4)))
    assert (numbers.kind.classes, numbers.train.condition[:3].tolist()) == (("5", "7"), [1, 0, 1])
    coded = found(dataset(contents, species=(datasets.ClassLabel(names=NAMES), LABELS)))
    assert coded.train.condition.tolist() == LABELS
    both = found(dataset(contents, LABELS, fine=(datasets.ClassLabel(names=["x", "y", *NAMES]), LABELS)))
    assert both.kind.classes == tuple(NAMES)
    assert "further columns of classes: 1 (as fine, as label is taken)" in both.notes[0]
    for feature, value in ((datasets.List(datasets.Value("int8")), [1, 0]), (datasets.Value("float32"), 0.5)):
        many = found(dataset(contents, label=(feature, [value] * NUMBER)))
        assert many.train.condition is None
        assert "columns that say no single class: 1 (as label)" in many.notes[0]


def test_a_folder_of_such_a_set_is_named_as_one_and_pictures_of_one_size_as_not_scaled(tmp_path, contents):
    table = dataset([encoded(k, size=(8, 8)) for k in range(NUMBER)])
    table.save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "files").mkdir()
    table.to_parquet(str(tmp_path / "files" / "a.parquet"))
    for folder in ("disk", "files"):
        with pytest.raises(DataError, match="is a Hugging Face data set: give arrow:"):
            kind_of_source(str(tmp_path / folder))
    assert "scaled" not in loaded(f"arrow:{tmp_path / 'disk'}").notes[0]
    assert "scaled and cut to 4 x 4" in loaded(f"arrow:{tmp_path / 'disk'}", size=4).notes[0]


def test_of_two_columns_of_pictures_the_first_is_read_and_the_other_named(tmp_path, contents):
    second = [encoded(100 + k) for k in range(NUMBER)]
    dataset(contents, mask=(datasets.Image(), files(second))).save_to_disk(str(tmp_path / "disk"))
    dataset(contents).save_to_disk(str(tmp_path / "alone"))
    found, alone = (loaded(f"arrow:{tmp_path / place}", size=8) for place in ("disk", "alone"))
    assert torch.equal(found.train.x, alone.train.x)
    assert "further columns of pictures: 1 (as mask)" in found.notes[0]


def test_one_picture_in_colour_among_many_grey_ones_makes_all_so(tmp_path, monkeypatch):
    monkeypatch.setattr("proxflow.data.arrow._LOOKED_AT", 2)
    rows = [encoded(k, grey=k != 5) for k in range(NUMBER)]
    for name, contents in (("coloured", rows), ("grey", [row for k, row in enumerate(rows) if k != 5])):
        dataset(contents).save_to_disk(str(tmp_path / name))
    assert loaded(f"arrow:{tmp_path / 'coloured'}").kind.shape[0] == 3
    assert loaded(f"arrow:{tmp_path / 'grey'}").kind.shape[0] == 1


def test_a_damaged_picture_in_the_middle_is_named(tmp_path, contents):
    spoiled = [*contents[:5], contents[5][:70], *contents[6:]]
    dataset(spoiled, LABELS).save_to_disk(str(tmp_path / "disk"))
    source = f"arrow:{tmp_path / 'disk'}"
    with pytest.raises(DataError, match=r"disk, row 5: cannot be read"):
        Image.read(source, held_out=0, size=8)
    lazy = Image.read(source, held_out=0, size=8, workers=0)
    assert isinstance(lazy.train, LazyExamples)
    x, left_out = lazy.train.take(torch.arange(NUMBER))
    assert list(left_out) == [5]
    assert torch.equal(x.x[5], x.x[6])
    manifest = prepare(sources.pictures_of(source, 8), tmp_path / "prepared", 0)
    assert manifest["number"] == NUMBER - 1
    assert "row 5: cannot be read" in manifest["unread"][0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [1, 2]}, "no column holds pictures; expected one of type Image, found a"),
        ({"image": pa.array([], pa.binary())}, "cannot be read as a data set"),
        ({"image": [{"bytes": None, "path": None}]}, "no picture can be read"),
        ({"image": [[{"a": 1}], [{"a": 2}]]}, "the column image holds no pictures"),
    ],
)
def test_what_holds_no_pictures_is_refused_in_a_sentence(tmp_path, columns, said):
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said) as caught:
        loaded(f"arrow:{tmp_path / 'a.parquet'}")
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    dataset([]).save_to_disk(str(tmp_path / "rowless"))
    for source, said in (
        (f"arrow:{tmp_path / 'nothing'}", "nothing: does not exist; expected a folder"),
        ("arrow:", "arrow:: does not exist"),
        (f"arrow:{tmp_path / 'empty'}", "cannot be read as a data set"),
        (f"arrow:{tmp_path / 'rowless'}", "or is an empty one"),
        (f"arrow:{tmp_path / 'damaged.parquet'}", "cannot be read as a data set"),
        ("hub:", "expected hub:OWNER/NAME"),
        ("hub:pictures", "expected hub:OWNER/NAME"),
        (f"hub:{tmp_path}", f"for what is in the folder here give arrow:{tmp_path}"),
        ("hub:someone/pictures", "the Hub cannot be reached"),
    ):
        assert main(["train", "--data", source, "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert "Traceback" not in err


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, mean, t):
        return self.layer(mean)


def test_the_same_training_however_many_processes_read(places):
    config, results = TrainingConfig(steps=4, batch_size=4, augment="flip"), []
    for place, workers in (("disk", None), ("disk", 0), ("disk", 1), ("hub", 2)):
        data = Image.read(f"arrow:{places / place}", held_out=0, size=8, workers=workers).train.alone()
        assert isinstance(data, Examples if workers is None else LazyExamples)
        torch.manual_seed(0)
        predictor = PointPredictor(Net(), GPFN(), parameterisation="x")
        settings = {**config.__dict__, "workers": workers}
        results.append(fit(predictor, GPFN(), data, TrainingConfig(**settings)).predictor.state_dict())
    for found in results[1:]:
        assert all(torch.equal(found[name], tensor) for name, tensor in results[0].items())


def test_a_run_knows_its_data_set_again(places):
    contents = [loaded(f"arrow:{places / 'disk'}", size=8).train.content for _ in range(2)]
    assert contents[0] == contents[1]
    changed = datasets.load_from_disk(str(places / "disk")).select(range(NUMBER - 1, -1, -1))
    changed.save_to_disk(str(places / "other"))
    shutil.rmtree(places / "disk")
    shutil.move(places / "other", places / "disk")
    assert loaded(f"arrow:{places / 'disk'}", size=8).train.content != contents[0]


def test_a_folder_of_pictures_is_told_to_be_given_as_it_is(tmp_path):
    Pillow.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(
        DataError, match=f"neither dataset_info.json nor parquet files: give --data {tmp_path}, as it holds"
    ):
        loaded(f"arrow:{tmp_path}")


def test_a_hub_that_cannot_be_reached_is_called_that(monkeypatch):
    import datasets

    def unreachable(name):
        try:
            raise type("LocalEntryNotFoundError", (FileNotFoundError,), {})("offline")
        except FileNotFoundError as error:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub") from error

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"the Hub cannot be reached: download the data set .* and give arrow:PATH"):
        loaded("hub:some/where")
