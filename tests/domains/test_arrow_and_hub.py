"""Folders of `save_to_disk` and hub ids. The folders are written by pyarrow alone, in the layout of `datasets` 5."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fedfm.config import DomainConfig
from fedfm.domains.formats import guess_task, read_source
from fedfm.errors import DataError

TEXTS = DomainConfig(task="text-classification")
TOKENS = DomainConfig(task="token-classification")
IMAGES = DomainConfig(task="image-classification")
POLARITY = {"_type": "ClassLabel", "names": ["negative", "positive"]}
TEXT_FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "label": POLARITY}
PERSONS = {"_type": "ClassLabel", "names": ["O", "I-PER", "B-PER"]}


def save(folder: Path, features: dict, *shards: dict) -> Path:
    folder.mkdir(parents=True)
    files = [f"data-{index:05d}-of-{len(shards):05d}.arrow" for index in range(len(shards))]
    for name, columns in zip(files, shards, strict=True):
        table = pa.table(columns)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def save_dict(folder: Path, features: dict, **splits: dict) -> Path:
    for name, columns in splits.items():
        save(folder / name, features, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def refusal(path, settings=TEXTS) -> str:
    with pytest.raises(DataError) as error:
        read_source(path, settings, 0)
    return str(error.value).replace(f"{path}/", "").replace(str(path), "PATH")


def test_texts_in_two_shards(tmp_path):
    shards = [{"text": [f"{part}{i}" for i in range(10)], "label": [0, 1] * 5} for part in "ab"]
    path = save(tmp_path / "x", TEXT_FEATURES, *shards)
    data = read_source(path, TEXTS, 0)
    assert guess_task(path) == "text-classification" and data.labels == ("negative", "positive")
    assert [len(split) for split in data.splits().values()] == [14, 2, 4] and data.warnings == ()
    assert all(int(text[1]) % 2 == label for text, label in zip(data.train.inputs, data.train.labels, strict=True))


def test_splits_by_their_usual_names(tmp_path):
    columns = {"text": ["a", "b"], "label": [1, 0]}
    others = {"text": ["c"], "label": [1]}, {"text": ["d"], "label": [0]}
    path = save_dict(tmp_path / "x", TEXT_FEATURES, test=others[0], unsupervised=columns, dev=others[1], train=columns)
    data = read_source(path, TEXTS, 0)
    assert (data.train.inputs, data.validation.inputs, data.test.inputs) == (("a", "b"), ("d",), ("c",))
    assert data.warnings == ('the split "unsupervised" is not used',)


def test_of_several_splits_the_one_with_the_usual_name_is_read(tmp_path):
    def columns(name):
        return {"text": [f"{name} 0", f"{name} 1"], "label": [0, 1]}

    names = ("train", "eval", "test", "testing", "unsupervised")
    data = read_source(save_dict(tmp_path / "x", TEXT_FEATURES, **{name: columns(name) for name in names}), TEXTS, 0)
    assert [split.inputs[0] for split in data.splits().values()] == ["train 0", "eval 0", "test 0"]
    assert data.warnings == (
        '"eval", beside "test", is read as the validation split',
        '"testing" is not used: "test" is the test split',
        'the split "unsupervised" is not used',
    )
    names = ("train", "dev", "val")
    path = save_dict(tmp_path / "y", TEXT_FEATURES, **{name: columns(name) for name in names})
    assert '"dev" and "val" both look like the validation split' in refusal(path)


@pytest.mark.parametrize("wrap", [{"_type": "List"}, {"_type": "Sequence", "length": -1}])
def test_tokens_and_numbered_tags(tmp_path, wrap):
    features = {"tokens": {"feature": {"_type": "Value"}, **wrap}, "ner_tags": {"feature": PERSONS, **wrap}}
    columns = {"tokens": [["Anna", "Li", "met"], ["Bo"]], "ner_tags": [[2, 1, 0], [2]]}
    path = save_dict(tmp_path / "x", features, train=columns, validation=columns, test=columns)
    data = read_source(path, TOKENS, 0)
    assert guess_task(path) == "token-classification" and data.labels == ("O", "B-PER", "I-PER")
    assert data.train.inputs == (("Anna", "Li", "met"), ("Bo",))
    assert [tags.tolist() for tags in data.train.labels] == [[1, 2, 0], [1]]


def test_embedded_images(tmp_path):
    def picture(value: int) -> dict:
        sink = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(sink, "PNG")
        return {"bytes": sink.getvalue(), "path": None}

    features = {"scan": {"_type": "Image"}, "label": POLARITY}
    columns = {"scan": [picture(i) for i in range(20)], "label": [0, 1] * 10}
    path = save(tmp_path / "x", features, columns)
    data = read_source(path, IMAGES, 0)
    assert guess_task(path) == "image-classification"
    assert data.train.inputs.shape == (14, 4, 4, 1)
    assert (data.train.inputs[:, 0, 0, 0] % 2 == data.train.labels).all()
    broken = save(tmp_path / "y", features, {"scan": [{"bytes": None, "path": "a.png"}, picture(1)], "label": [0, 1]})
    assert "PATH, index 0: the row holds no image, only a path" in refusal(broken, IMAGES)


@pytest.mark.parametrize(
    ("settings", "features", "columns", "message"),
    [
        (
            TEXTS,
            TEXT_FEATURES,
            {"text": ["a", "b"], "label": [0, 2]},
            "index 1: label 2 is out of range: the dataset nam",
        ),
        (TEXTS, TEXT_FEATURES, {"text": ["a", "b"], "label": [0, -1]}, "index 1: label -1 is out of range"),
        (TEXTS, {}, {"text": ["a", None], "label": ["x", "y"]}, "index 1: the text is None, not a text"),
        (TEXTS, {}, {"text": ["a", "b"], "label": ["x", None]}, "index 1: None is no label"),
        (
            TEXTS,
            {},
            {"text": ["a"], "labels": [1]},
            'no column "label". did you mean "labels"? Columns here: text, labels',
        ),
        (
            TOKENS,
            {},
            {"tokens": [["a"]], "ner_tags": [[1]]},
            "index 0: the tags are numbers, and the dataset does not name",
        ),
        (TOKENS, {}, {"tokens": [["a"]], "ner_tags": [["B-X", "O"]]}, "index 0: 1 tokens and 2 tags"),
        (TOKENS, {}, {"tokens": ["a"], "ner_tags": [["O"]]}, "index 0: the tokens are not a list of words"),
        (TOKENS, {}, {"tokens": [["a"]], "ner_tags": ["O"]}, "index 0: the tags are not a list"),
        (TOKENS, {}, {"tokens": [["a", "b"]], "ner_tags": [["O", "X"]]}, 'index 0, word 1: unknown tag "X"'),
    ],
)
def test_refusals(tmp_path, settings, features, columns, message):
    assert message in refusal(save(tmp_path / "x", features, columns), settings)


def test_damaged_folders(tmp_path):
    path = save(tmp_path / "x", TEXT_FEATURES, {"text": ["a"], "label": [0]})
    next(path.glob("*.arrow")).write_bytes(b"broken")
    assert "PATH: an Arrow file is missing or damaged" in refusal(path)
    (path / "state.json").write_text("{}")
    assert "state.json: cannot be read (KeyError: '_data_files')" in refusal(path)
    columns = {"text": ["a"], "label": [0]}
    assert "no train split here" in refusal(save_dict(tmp_path / "y", TEXT_FEATURES, test=columns))


def test_hub_id_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = refusal(Path("owner/name"))
    assert "PATH: no such file or folder, and datasets of the hub need the package `datasets`" in text
    assert "pip install 'fedfm[hub]'" in text


class FakeSplit:
    """What fedfm uses of a `datasets.Dataset`."""

    def __init__(self, columns: dict):
        self.table = pa.table(columns)
        self.features = types.SimpleNamespace(to_dict=lambda: TEXT_FEATURES)

    def with_format(self, kind: str) -> FakeSplit:
        assert kind == "arrow"
        return self

    def __getitem__(self, key: slice) -> pa.Table:
        return self.table[key]


def test_hub_id_with_the_package(monkeypatch):
    splits = {
        name: FakeSplit({"text": [f"{name} {i}" for i in range(4)], "label": [0, 1] * 2}) for name in ("train", "test")
    }
    module = types.SimpleNamespace(load_dataset={"owner/name": splits}.__getitem__)
    monkeypatch.setitem(sys.modules, "datasets", module)
    data = read_source(Path("owner/name"), TEXTS, 0)
    assert data.labels == ("negative", "positive") and data.test.inputs == tuple(f"test {i}" for i in range(4))
    assert len(data.sha256) == 64 and data.source == "owner/name"
    splits |= {"eval": splits["test"], "testing": splits["train"]}
    data = read_source(Path("owner/name"), TEXTS, 0)
    assert data.validation.inputs == data.test.inputs == tuple(f"test {i}" for i in range(4))
    assert data.warnings[0].startswith('"eval", beside "test"') and data.warnings[1].startswith('"testing" is not used')
    splits["valid"] = splits["dev"] = splits["test"]
    text = refusal(Path("owner/name"))
    assert text.startswith('PATH: "valid" and "dev" both look like the validation split\n    mend: give a folder, or a')
    text = refusal(Path("owner/other"))
    assert "the hub gave no dataset: 'PATH'" in text and "HF_HUB_OFFLINE=1" in text


def test_descriptions_of_another_shape_are_refused(tmp_path):
    path = save_dict(tmp_path / "x", TEXT_FEATURES, train={"text": ["a", "b"], "label": [0, 1]})
    (path / "train" / "dataset_info.json").write_text('{"features": 3}')
    assert '"features" is not a table of columns' in refusal(path)
    (path / "dataset_dict.json").write_text('{"splits": ["train", 3]}')
    assert '"splits" is not a list of names' in refusal(path)
