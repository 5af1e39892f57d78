"""CSV, JSON lines and Parquet: what is read, refused and warned of."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfm.config import DomainConfig
from fedfm.domains.formats import read_source
from fedfm.errors import DataError

TEXTS = DomainConfig(task="text-classification")


def lines(*rows, text="text", label="label") -> str:
    return "\n".join(json.dumps({text: row[0], label: row[1]}) for row in rows)


def refusal(path, settings=TEXTS) -> str:
    with pytest.raises(DataError) as error:
        read_source(path, settings, 0)
    return str(error.value).replace(f"{path}/", "").replace(str(path), "PATH")


def names_of(examples, labels):
    return [labels[number] for number in examples.labels]


def test_csv_with_quotes_over_lines_and_a_bom(tmp_path):
    path = tmp_path / "news.csv"
    rows = [f'"up, {i}\nmore",good\r\ndown {i},bad\r\n' for i in range(20)]
    path.write_text("\ufefftext,label\r\n" + "".join(rows), encoding="utf-8", newline="")
    data = read_source(path, TEXTS, 0)
    assert data.labels == ("bad", "good")
    assert [len(split) for split in data.splits().values()] == [28, 4, 8]
    assert [np.bincount(split.labels).tolist() for split in data.splits().values()] == [[14, 14], [2, 2], [4, 4]]
    together = {
        text: data.labels[n] for s in data.splits().values() for text, n in zip(s.inputs, s.labels, strict=True)
    }
    assert len(together) == 40 and together["up, 3\nmore"] == "good" and together["down 7"] == "bad"
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.warnings == ()


def test_folder_with_declared_labels_and_other_columns(tmp_path):
    (tmp_path / "labels.json").write_text('["sell", "hold", "buy"]')
    (tmp_path / "train.jsonl").write_text(lines(("a", "buy"), ("b", "sell"), ("c", "hold"), text="t", label="y"))
    (tmp_path / "validation.csv").write_text("y,t\nbuy,d\n")
    pa.parquet.write_table(pa.table({"t": ["e"], "y": ["hold"]}), tmp_path / "test.parquet")
    settings = {"task": "text-classification", "text-column": "t", "label-column": "y"}
    data = read_source(tmp_path, DomainConfig.model_validate(settings), 0)
    assert data.labels == ("sell", "hold", "buy")
    assert names_of(data.train, data.labels) == ["buy", "sell", "hold"]
    assert (data.validation.inputs, names_of(data.validation, data.labels)) == (("d",), ["buy"])
    assert (data.test.inputs, names_of(data.test, data.labels)) == (("e",), ["hold"])
    # what `sha256sum labels.json test.parquet train.jsonl validation.csv | sha256sum` prints
    names = ["labels.json", "test.parquet", "train.jsonl", "validation.csv"]
    listing = "".join(f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    assert data.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_numbers_as_labels_are_sorted_by_value(tmp_path):
    path = tmp_path / "stars.jsonl"
    path.write_text(lines(*[(f"t{i}", i % 11) for i in range(110)]))
    assert read_source(path, TEXTS, 0).labels == tuple(str(i) for i in range(11))


def test_a_missing_split_is_taken_from_train_and_told(tmp_path):
    """Shares 70 : 10 leave validation 1/8 of 80 = 10."""
    (tmp_path / "train.jsonl").write_text(lines(*[(f"t{i}", i % 2) for i in range(80)]))
    (tmp_path / "test.jsonl").write_text(lines(("u", 1)))
    data = read_source(tmp_path, TEXTS, 0)
    assert [len(split) for split in data.splits().values()] == [70, 10, 1]
    assert data.warnings == (
        "the source has no validation split: a seeded stratified draw took 10 training examples for validation",
    )


def test_warnings_of_copies_and_empty_texts(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(("a", 0), ("b", 1), ("  ", 1)))
    (tmp_path / "val.jsonl").write_text(lines(("a", 0), ("b", 0), ("c", 1)))
    (tmp_path / "test.jsonl").write_text(lines(("c", 0), ("", 1)))
    data = read_source(tmp_path, TEXTS, 0)
    assert data.warnings == (
        f"2 texts are empty (first: {tmp_path}/train.jsonl, line 3)",
        "2 validation examples are found in train too, exactly equal: scores on validation flatter",
        "1 test example is found in validation too, exactly equal: scores on test flatter",
    )


def test_an_empty_split_is_told(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(("a", 0), ("b", 1)))
    (tmp_path / "val.jsonl").write_text("\n")
    (tmp_path / "test.csv").write_text("text,label\n")
    data = read_source(tmp_path, TEXTS, 0)
    assert data.warnings == ("the validation split is empty", "the test split is empty")


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        (
            "x.csv",
            "text,lable\na,b\n",
            ['x.csv, line 1: no column "label". did you mean "lable"? Columns here: text, lable', "set label-column"],
        ),
        ("x.csv", "text,label\na,b,c\nd,e\nf\n", ["line 2: 3 cells, but the header has 2", "line 4: 1 cells"]),
        ("x.csv", 'text,label\n"a"b,c\n', ["x.csv, line 2: broken CSV: ',' expected after '\"'"]),
        ("x.csv", 'text,label\na,b\n"never closed,c\n', ["x.csv, line 3: broken CSV: unexpected end of data"]),
        ("x.csv", "", ["x.csv: the file is empty"]),
        ("x.csv", "text,label\n", ["the training split is empty"]),
        ("x.csv", "text,label\na,x\nb,x\n", ['the training split has a single class, "x"']),
        ("x.csv", "text,label\na, \n", ['x.csv, line 2: " " is no label']),
        (
            "x.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "a" "label": 1}\n[1]\n{"text": "b"}\n',
            [
                "x.jsonl, line 2: broken JSON: Expecting ',' delimiter (column 14)",
                "line 3: not a JSON object",
                'line 4: no column "label". Columns here: text',
            ],
        ),
        (
            "x.jsonl",
            '{"text": 3, "label": "x"}\n{"text": "a", "label": null}\n{"text": "a", "label": 0.5}\n',
            ["line 1: the text is 3, not a text", "line 2: null is no label", "line 3: 0.5 is no label"],
        ),
        (
            "x.jsonl",
            '{"text": "a\\ud83d", "label": "x"}\n{"text": "b", "label": "\\ude00"}\n{"text": 1'
            + "0" * 5000
            + "}\n"
            + "[" * 100_000
            + "\n",
            [
                r"line 1: half a character, \ud83d, which no text can hold",
                r"line 2: half a character, \ude00",
                "line 3: JSON that cannot be read: Exceeds the limit",
                "line 4: JSON that cannot be read",
            ],
        ),
        ("x.csv", "text;label\na;b\n", ["line 1: the cells are parted by semicolons", "with commas between the cells"]),
        ("x.csv", "Satz;Klasse\na;b\n", ["line 1: the cells are parted by semicolons", 'field delimiter ","']),
        ("x.csv", "text\tlabel\na\tb\n", ["line 1: the cells are parted by tabs"]),
        ("x.csv", "text,label,text\na,b,c\n", ['line 1: 2 columns are named "text"']),
        ("x.parquet", "no parquet", ["x.parquet: not a Parquet file that can be read"]),
    ],
)
def test_refusals(tmp_path, name, content, messages):
    (tmp_path / name).write_text(content)
    text = refusal(tmp_path / name).replace("PATH", name)
    for message in messages:
        assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"text";"label"\n"a, b";"c"\n', "PATH, line 1: the cells are parted by semicolons"),
        ('"text,label\na,b\n', "PATH, line 1: broken CSV: unexpected end of data"),
        ('"He said "no"; left",pos\n', "PATH, line 1: broken CSV: "),  # parted by commas, and one quote is wrong
        ('"text; long","label "x""\na,b\n', "PATH, line 1: broken CSV: "),
    ],
)
def test_of_a_header_that_breaks_in_its_quotes_one_thing_is_said(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    text = refusal(tmp_path / "x.csv")
    assert message in text and text.count("line ") == 1 and "empty" not in text


def test_whole_surrogate_pairs_long_texts_and_other_columns_twice(tmp_path):
    """A pair of halves is a character; a judgment of 200,000 letters is a text; what is not read may be as it likes."""
    path = tmp_path / "x.csv"
    path.write_text("text,label,x,x\n" + "".join(f"{'a' * 200_000} {i},{'ab'[i % 2]},1,2\n" for i in range(4)))
    assert max(len(text) for text in read_source(path, TEXTS, 0).train.inputs) == 200_002
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert "\U0001f600" in read_source(path, TEXTS, 0).train.inputs


def test_every_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,label\ncaf\xe9,a\nok,b\n\xff,a\n")
    text = refusal(path)
    assert "line 2: not UTF-8 text (byte 14 of the file)\nPATH, line 4: not UTF-8 text (byte 23 of the file)" in text
    assert "save the file as UTF-8" in text


def test_labels_elsewhere(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(("a", "x"), ("b", "y")))
    (tmp_path / "test.jsonl").write_text(lines(("c", "x"), ("d", "z")))
    assert 'test.jsonl, line 2: "z" appears in test and never in train' in refusal(tmp_path)
    (tmp_path / "labels.json").write_text('["x", "y", "zz"]')
    assert 'test.jsonl, line 2: label "z" is not among the declared labels. did you mean "zz"?' in refusal(tmp_path)
    (tmp_path / "labels.json").write_text('["x", "y"')
    assert "labels.json, line 1: broken JSON" in refusal(tmp_path)
    (tmp_path / "labels.json").write_text('["x", "x"]')
    assert "labels.json: not a list of different label names" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("training", "valid", "testing"), ("Train", "Dev", "eval")])
def test_names_of_splits_are_those_that_datasets_takes(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / f"{name}.jsonl").write_text(lines((f"a{number}", "x"), (f"b{number}", "y")))
    data = read_source(tmp_path, TEXTS, 0)
    assert [split.inputs for split in data.splits().values()] == [("a0", "b0"), ("a1", "b1"), ("a2", "b2")]
    (tmp_path / "Evaluation.csv").write_text("text,label\nc,x\n")
    assert "both look like the test split" in refusal(tmp_path)
    (tmp_path / "test.csv").write_text("text,label\nc,x\n")
    data = read_source(tmp_path, TEXTS, 0)
    assert data.test.inputs == ("c",) and data.validation.inputs == ("a1", "b1")
    assert '"Evaluation.csv" is not used: "test.csv" is the test split' in data.warnings


def csv_files(folder, *names):
    for name in names:
        (folder / name).write_text(f"text,label\n{name} x,x\n{name} y,y\n")


@pytest.mark.parametrize(
    ("names", "read", "warnings"),
    [
        (("train", "eval", "test"), ("train", "eval", "test"), ('"eval.csv", beside "test.csv", is read as the val',)),
        (("Training", "Evaluation", "Test"), ("Training", "Evaluation", "Test"), ('"Evaluation.csv", beside "Test',)),
        (("train", "dev", "validation", "test"), ("train", "validation", "test"), ('"dev.csv" is not used: "valida',)),
        (("train", "training", "dev", "test"), ("train", "dev", "test"), ('"training.csv" is not used: "train.csv"',)),
        (("train", "dev", "eval", "test"), ("train", "dev", "test"), ('"eval.csv" is not used: "test.csv" is the te',)),
        (("train", "dev", "eval"), ("train", "dev", "eval"), ()),
    ],
)
def test_several_names_for_a_split(tmp_path, names, read, warnings):
    """The split's own name counts; eval beside test is the validation split where there is no other."""
    csv_files(tmp_path, *(f"{name}.csv" for name in names))
    data = read_source(tmp_path, TEXTS, 0)
    assert [split.inputs[0] for split in data.splits().values()] == [f"{name}.csv x" for name in read]
    assert len(data.warnings) == len(warnings)
    assert all(said.startswith(start) for said, start in zip(data.warnings, warnings, strict=True))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("dev.csv", "val.csv"), "validation"),
        (("eval.csv", "testing.csv"), "test"),
        (("eval.csv", "evaluation.csv", "test.csv"), "validation"),
        (("test.csv", "test.jsonl", "testing.csv"), "test"),
    ],
)
def test_two_files_for_a_split_of_which_neither_has_the_right_to_it(tmp_path, names, split):
    csv_files(tmp_path, "train.csv", *names)
    said = refusal(tmp_path)
    assert f"both look like the {split} split\n    mend: give a folder, or a copy of the dataset" in said


def test_nothing_there_and_nothing_that_fits(tmp_path):
    assert "PATH: no such file or folder" in refusal(tmp_path / "gone.csv")
    assert "nothing here that can be read for text-classification" in refusal(tmp_path)


def test_the_smallest_source_that_can_be_used(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,x\nb,y\n")
    data = read_source(path, TEXTS, 0)
    assert data.train.inputs == ("a", "b")
    assert data.warnings == ("the validation split is empty", "the test split is empty")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("text,label\n")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    assert "PATH: cannot be read: Permission denied\n    mend: check that you may read it" in refusal(
        tmp_path / "x.csv"
    )
