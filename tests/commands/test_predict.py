"""`fedfm predict`: the lines it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from command_helpers import DOMAINS, make_run
from PIL import Image

from fedfm.commands.predict import fit_image, predict_lines
from fedfm.config import load_config
from fedfm.domains import load_site
from fedfm.errors import DataError, FedfmError, UserError


def pooled_test(run, domain):
    """The pooled test examples of a domain: inputs and names of labels."""
    config = load_config(run / "config.toml")
    inputs, labels = [], []
    for site in config.domains[domain].site_names(domain):
        data = load_site(config, domain, site)
        inputs += list(data.test.inputs)
        names = np.array(data.labels)
        labels += [names[label].tolist() for label in data.test.labels]
    return inputs, labels


def final(run, domain):
    return json.loads((run / "run.json").read_text())["final"][domain]


def write_images(folder, images) -> list[str]:
    files = [str(folder / f"{number}.png") for number in range(len(images))]
    for file, pixels in zip(files, images, strict=True):
        Image.fromarray(pixels.squeeze()).save(file)
    return files


def test_images_are_labelled_as_in_the_test_of_the_run(tiny_run, tmp_path):
    images, labels = pooled_test(tiny_run, "medical")
    files = write_images(tmp_path, images)
    rows = [line.split("\t") for line in predict_lines(tiny_run, files, "medical")]
    assert [row[2] for row in rows] == files
    correct = np.mean([row[0] == label for row, label in zip(rows, labels, strict=True)])
    assert correct == pytest.approx(final(tiny_run, "medical")["accuracy"], abs=1e-9)
    assert all(0.25 <= float(row[1]) <= 1 for row in rows)  # the largest of four probabilities


def test_texts_are_labelled_as_in_the_test_of_the_run(tiny_run, tmp_path):
    texts, labels = pooled_test(tiny_run, "finance")
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    rows = [line.split("\t") for line in predict_lines(tiny_run, [str(file)], "finance")]
    assert [row[2] for row in rows] == texts
    correct = np.mean([row[0] == label for row, label in zip(rows, labels, strict=True)])
    assert correct == pytest.approx(final(tiny_run, "finance")["accuracy"], abs=1e-9)


def test_words_are_tagged_as_in_the_test_of_the_run(tiny_run):
    sentences, tags = pooled_test(tiny_run, "ner")
    lines = list(predict_lines(tiny_run, [" ".join(words) for words in sentences], "ner"))
    pairs = [[word.rpartition("/") for word in line.split(" ")] for line in lines]
    assert [tuple(word for word, _, _ in line) for line in pairs] == sentences
    predicted = np.concatenate([[tag for _, _, tag in line] for line in pairs])
    correct = np.mean(predicted == np.concatenate(tags))
    assert correct == pytest.approx(final(tiny_run, "ner")["token_accuracy"], abs=1e-9)


def test_a_text_is_itself_or_a_line_of_a_file(tiny_run, tmp_path):
    (tmp_path / "two.txt").write_text("Profit rose.\r\n\r\n  Sales\tfell.  \r\n", encoding="utf-8")
    long = "word " * 199 + "word"
    given = ["Profit rose.", str(tmp_path / "two.txt"), "over two\nlines", "-5 % loss", long]
    lines = list(predict_lines(tiny_run, given, "finance"))
    texts = [line.split("\t")[2] for line in lines]
    assert texts == ["Profit rose.", "Profit rose.", "Sales fell.", "over two lines", "-5 % loss", long]
    assert lines[0] == lines[1]


def test_words_beyond_the_maximum_length_are_outside(tiny_run):
    (line,) = predict_lines(tiny_run, ["word " * 100], "ner")
    tags = [word.rpartition("/")[2] for word in line.split()]
    assert len(tags) == 100
    assert set(tags[64:]) == {"O"}


def test_images_of_any_size_and_colour_are_fitted(tiny_run, tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (50, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.jpg")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    assert [line.split("\t")[2] for line in predict_lines(tiny_run, files, "medical")] == files


def test_fit_image_by_hand():
    """Grey of RGB is ITU-R 601: 0.299 R + 0.587 G + 0.114 B; (100, 200, 50) -> 29.9 + 117.4 + 5.7 = 153."""
    colour = np.full((4, 4, 3), (100, 200, 50), np.uint8)
    assert np.array_equal(fit_image(colour, (1, 2, 3)), np.full((2, 3, 1), 153, np.uint8))
    grey = np.full((4, 4), 7, np.uint8)
    assert np.array_equal(fit_image(grey, (3, 4, 4)), np.full((4, 4, 3), 7, np.uint8))


def refusal(run, inputs, *where) -> FedfmError:
    with pytest.raises(UserError) as caught:
        list(predict_lines(run, inputs, *where))
    return caught.value


def test_refusals_of_inputs(tiny_run, tmp_path):
    (tmp_path / "no.png").write_text("not an image", encoding="utf-8")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    inputs = [str(tmp_path / name) for name in ("nowhere.png", "no.png", "deep.png", "")]
    error = refusal(tiny_run, inputs, "medical")
    assert isinstance(error, DataError)
    assert [problem.where for problem in error.problems] == inputs
    said = [problem.what for problem in error.problems]
    assert said[0] == "cannot be read: No such file or directory"
    assert said[1].startswith("an image that cannot be read")
    assert said[2].startswith("more than 8 bits a pixel")
    assert said[3] == "cannot be read: Is a directory"

    (tmp_path / "bytes.txt").write_bytes(b"ok\n\xff")
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    inputs = [str(tmp_path / "bytes.txt"), str(tmp_path / "empty.txt"), "nowhere.txt", "some/where", " "]
    error = refusal(tiny_run, inputs, "finance")
    assert [problem.what for problem in error.problems] == [
        "not UTF-8 text (byte 3 of the file)", "it holds no text", "there is no such file", "there is no such file",
        "it holds no text",
    ]  # fmt: skip


def test_files_of_a_domains_own_formats_give_their_texts(tiny_run, tmp_path):
    """No header, no label and no byte-order mark is taken for a text; labels need not be there; a row without text
    stays a row."""
    (tmp_path / "a.csv").write_text('\ufefflabel,text\ngood,"Profit rose,\n a lot"\n,\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "Sales fell."}\n', encoding="utf-8")
    pd.DataFrame({"text": ["Shares were flat."]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("\ufeffOrders doubled.\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.parquet", "d.txt")]
    texts = [line.split("\t")[2] for line in predict_lines(tiny_run, files, "finance")]
    assert texts == ["Profit rose, a lot", "", "Sales fell.", "Shares were flat.", "Orders doubled."]
    plain = [*predict_lines(tiny_run, [text for text in texts if text], "finance")]
    assert plain == [line for line in predict_lines(tiny_run, files, "finance") if not line.endswith("\t")]


@pytest.mark.parametrize("name", ["x.conll", "x.bio", "x.txt"])
def test_columns_of_tokens_and_tags_give_their_tokens(tiny_run, tmp_path, name):
    (tmp_path / name).write_text("-DOCSTART- O\n\nAnna B-PER\nLee I-PER\n\nleft\tO\n", encoding="utf-8")
    lines = [*predict_lines(tiny_run, [str(tmp_path / name)], "ner")]
    assert [[word.rpartition("/")[0] for word in line.split()] for line in lines] == [["Anna", "Lee"], ["left"]]


@pytest.mark.parametrize("text", ["Vitamin B-12", "I love O", "By E-mail.\nBy S-Bahn"])
def test_words_that_look_like_tags_stay(tiny_run, tmp_path, text):
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    lines = [*predict_lines(tiny_run, [str(tmp_path / "one.txt")], "ner")]
    found = [" ".join(word.rpartition("/")[0] for word in line.split()) for line in lines]
    assert found == text.split("\n")


def test_tokens_without_tags_and_lines_of_words(tiny_run, tmp_path):
    (tmp_path / "x.conll").write_text("Anna\nLee\n\nleft\n", encoding="utf-8")
    (tmp_path / "x.txt").write_text("Anna Lee\nleft\n", encoding="utf-8")
    first, second = ([*predict_lines(tiny_run, [str(tmp_path / n)], "ner")] for n in ("x.conll", "x.txt"))
    assert first == second and len(first) == 2


def test_files_of_other_formats_and_what_is_no_text_are_refused(tiny_run, tmp_path):
    (tmp_path / "x.conll").write_text("Anna B-PER\n", encoding="utf-8")
    (tmp_path / "x.csv").write_text("txet,label\na,b\n", encoding="utf-8")
    (tmp_path / "x.jsonl").write_text('{"text": "ok"}\n{"text": 3}\n{"text": "\\ud83d"}\n', encoding="utf-8")
    given = [*(str(tmp_path / name) for name in ("x.conll", "x.csv", "x.jsonl")), str(tmp_path), "gone.BIO", "\udce9a"]
    error = refusal(tiny_run, given, "finance")
    assert [problem.what for problem in error.problems] == [
        "a .conll file is not read for text-classification",
        'no column "text". did you mean "txet"? Columns here: txet, label',
        "the text is 3, not a text", r"half a character, \ud83d, which no text can hold",
        "this is a folder", "there is no such file", "not UTF-8 text",
    ]  # fmt: skip
    assert "a .csv file is not read for token-classification" in str(refusal(tiny_run, [given[1]], "ner"))


def test_refusals_of_runs_and_domains(tiny_run, tmp_path):
    assert 'no domain "medcal". did you mean "medical"?' in str(refusal(tiny_run, ["x"], "medcal"))
    error = refusal(tiny_run, ["x"])
    assert "the run has 3 domains" in str(error)
    assert error.problems[0].mend == "--domain medical | finance | ner"
    assert "not a run folder" in str(refusal(tmp_path, ["x"], "medical"))
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert str(refusal(tmp_path, ["x"], "medical")).endswith(
        f"this run has not reached its end\n    mend: fedfm resume {tmp_path}"
    )


def test_a_model_whose_run_did_not_come_to_its_end_is_not_used(tmp_path):
    run = make_run(tmp_path, 'sharing."head.*"=private')
    info = json.loads((run / "run.json").read_text())
    del info["final_round"]  # as of a run that was killed between writing the model and saying of which round it is
    (run / "run.json").write_text(json.dumps(info))
    assert str(refusal(run, ["x"], "finance", "finance-1")).endswith(
        f"this run has not reached its end\n    mend: fedfm resume {run}"
    )


def test_a_private_head_needs_its_site_and_the_only_domain_no_name(tmp_path):
    finance = {"finance": {**DOMAINS["finance"], "sites": 2}}
    run = make_run(tmp_path, 'sharing."head.*"=private', domains=finance)
    error = refusal(run, ["Profit rose."])
    assert "part of the model of domain finance is private to its sites" in str(error)
    assert error.problems[0].mend == "name one: --site finance-1 | finance-2"
    unknown = str(refusal(run, ["x"], "", "finance1"))
    assert 'domain finance has no site "finance1". did you mean "finance-1"?' in unknown
    first, second = ([*predict_lines(run, ["Profit rose."], "", site)] for site in ("finance-1", "finance-2"))
    assert first != second


def test_a_site_that_never_trained_is_used_with_its_start_values(tmp_path):
    """Steps too small to move a score: the best round is 0, before any site has kept a head of its own."""
    still = ["local.learning-rate=1e-30", "local.head-learning-rate=1e-30", "early-stopping.patience=1"]
    run = make_run(tmp_path, 'sharing."head.*"=private', *still)
    assert json.loads((run / "run.json").read_text())["final_round"] == 0
    (line,) = predict_lines(run, ["Profit rose."], "finance", "finance-1")
    assert line.endswith("\tProfit rose.")
    shutil.rmtree(run / "checkpoint")
    gone = str(refusal(run, ["x"], "finance", "finance-1"))
    assert "what site finance-1 kept to itself is not in this folder" in gone
