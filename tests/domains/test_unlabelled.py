"""Texts that nobody has labelled: what is columns and what is sentences, where lines end, what a CSV is told."""

from __future__ import annotations

import pandas as pd
import pytest

from fedfm.config import DomainConfig
from fedfm.domains.formats.unlabelled import read_unlabelled
from fedfm.errors import DataError

TEXTS = DomainConfig(task="text-classification")
TOKENS = DomainConfig(task="token-classification")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def read(folder, content, name="x.txt", settings=TOKENS, labels=LABELS):
    (folder / name).write_bytes(content.encode())
    return read_unlabelled(folder / name, settings, labels)


@pytest.mark.parametrize(
    "lines",
    [
        ["Vitamin B-12"],
        ["I love O"],
        ["It came by E-mail."],
        ["Take the S-Bahn", "Drive down I-95", "Eat more B-12"],  # as many words, but no types of the model's
        ["She loves O", "He was no B-PER"],  # of different lengths
        ["Blood group O", "Her blood group is O"],
        ["Anna B-NAME", "Rome B-DATE"],  # no type that the model knows
        ["B-PER", "O"],
        ["Anna"],
    ],
)
def test_no_word_of_a_sentence_is_lost(tmp_path, lines):
    assert read(tmp_path, "\n".join(lines) + "\n") == lines


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("Anna B-PER\nLee I-PER\n\nleft O\n", ["Anna Lee", "left"]),
        ("-DOCSTART- -X- -X- O\n\nAnna NNP B-NP I-PER\nleft VB O O\n", ["Anna left"]),
        ("Anna U-PER\nNew B-LOC\nYork L-LOC\n", ["Anna New York"]),  # BILOU
        ("Anna S-PER\nNew B-LOC\nYork E-LOC\n", ["Anna New York"]),  # BIOES
        ("-DOCSTART- O\n\nRome B-DATE\n", ["Rome"]),
        ("Anna B-PER\n", ["Anna"]),
        ("Anna B-PER\nRome B-DATE\n", ["Anna Rome"]),  # one of the types is enough
        ("Mai\tB-DATE\n\nRom\tB-CITY\n", ["Mai", "Rom"]),  # or a tab in every line
        ("she\tO\n", ["she"]),
        ("she\tO\nleft\tO\n", ["she left"]),
        ("Anna B-PER\r\nleft O\r\n\r\nBob B-PER\r\n", ["Anna left", "Bob"]),
        ("Anna B-PER\rleft O\r\rBob B-PER\r", ["Anna left", "Bob"]),
        ("Anna B-PER\r\r\nleft O\r\r\n\r\r\nBob B-PER\r\r\n", ["Anna left", "Bob"]),
    ],
)
def test_columns_give_their_tokens(tmp_path, content, sentences):
    assert read(tmp_path, content) == sentences
    assert read(tmp_path, content, "x.conll") == sentences


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("settings", [TEXTS, TOKENS])
def test_lines_end_as_on_any_system_and_nowhere_else(tmp_path, settings, end):
    content = end.join(["Profit rose.", "", "Sales\u2028fell.", "Orders\x0bdoubled."])
    assert read(tmp_path, content, settings=settings) == ["Profit rose.", "Sales fell.", "Orders doubled."]


@pytest.mark.parametrize("first", ["Profit rose; sales fell.", "a\tb", "left | right", "Profit rose, sales fell."])
def test_a_csv_of_texts_alone_is_told_to_name_its_columns(tmp_path, first):
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"{first}\nOrders doubled.\n", "x.csv", TEXTS)
    (problem,) = caught.value.problems
    assert problem.where.endswith("x.csv, line 1") and problem.what.startswith('no column "text".')
    assert problem.mend.startswith('the first line must name the columns, one of them "text"; or give the texts as')


@pytest.mark.parametrize("header", ["id? text", "Id?Text", '"Id"?"Sentence"'])
@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "upright strokes")])
def test_a_csv_with_other_signs_than_commas_is_told_so(tmp_path, sign, name, header):
    with pytest.raises(DataError, match=f"line 1: the cells are parted by {name}"):
        read(tmp_path, f"{header.replace('?', sign)}\n1{sign}Profit rose.\n", "x.csv", TEXTS)


def test_of_other_tables_too_the_column_is_named_and_no_key_of_a_run_that_is_done(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, '{"sentence": "Profit rose."}\n', "x.jsonl", TEXTS)
    (problem,) = caught.value.problems
    assert problem.mend == 'the texts must stand in a column "text"; or give them as .txt, one a line'
    pd.DataFrame({"sentence": ["Profit rose."]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError) as caught:
        read_unlabelled(tmp_path / "x.parquet", TEXTS, LABELS)
    assert caught.value.problems[0].mend == problem.mend
