"""CoNLL files: columns, the four tag schemes, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from fedfm.config import DomainConfig
from fedfm.domains.formats import read_source
from fedfm.domains.formats.tags import orphans, scheme_of, to_iob2
from fedfm.errors import DataError

TOKENS = DomainConfig(task="token-classification")
STRICT = DomainConfig.model_validate({"task": "token-classification", "strict-tags": True})


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.conll").write_bytes(text.encode())
    return folder


def tags_of(examples, labels):
    return [[labels[tag] for tag in tags] for tags in examples.labels]


def refusal(path, settings=TOKENS) -> str:
    with pytest.raises(DataError) as error:
        read_source(path, settings, 0)
    return str(error.value).replace(f"{path}/", "")


def spans_to_tags(spans, scheme):
    """Encode a sentence, given as (type or "", length) pieces, in a scheme: the inverse of what is tested."""
    tags, before = [], ""
    for kind, length in spans:
        if not kind:
            tags += ["O"] * length
        elif scheme == "IOB1":
            tags += [f"{'B' if kind == before else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
        elif scheme == "IOB2":
            tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        else:
            end, single = scheme[-1], {"BIOES": "S", "BILOU": "U"}[scheme]
            end = {"BIOES": "E", "BILOU": "L"}[scheme]
            inner = [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"{end}-{kind}"]
            tags += inner if length > 1 else [f"{single}-{kind}"]
        before = kind
    return tags


SENTENCES = st.lists(st.tuples(st.sampled_from(["", "PER", "LOC", "B-x"]), st.integers(1, 4)), min_size=1, max_size=8)


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU"])
@given(spans=SENTENCES)
def test_every_scheme_becomes_iob2(scheme, spans):
    assert list(to_iob2(spans_to_tags(spans, scheme))) == spans_to_tags(spans, "IOB2")


@given(spans=SENTENCES)
def test_entities_of_bioes_agree_with_seqeval(spans):
    tags = spans_to_tags([(kind.replace("-", ""), length) for kind, length in spans], "BIOES")
    assert get_entities(list(to_iob2(tags))) == get_entities(tags)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["I-PER", "I-PER", "O", "I-LOC", "B-LOC"], "IOB1"),
        (["B-PER", "I-PER", "O"], "IOB2"),
        (["B-PER", "O", "I-LOC"], "IOB2"),  # a B- where IOB1 has I-, so the lone I- is an error of IOB2
        (["B-PER", "E-PER", "O", "S-LOC"], "BIOES"),
        (["B-PER", "L-PER", "O", "U-LOC"], "BILOU"),
        (["O", "O"], "IOB2"),
    ],
)
def test_scheme_is_told(tags, scheme):
    assert scheme_of([tags]) == scheme


def test_an_entity_that_never_began():
    assert orphans(["O", "I-PER", "I-PER", "S-PER", "I-PER", "E-LOC"]) == [1, 4, 5]
    assert to_iob2(["O", "I-PER", "I-PER", "S-PER", "I-PER", "E-LOC"]) == (
        "O", "B-PER", "I-PER", "B-PER", "B-PER", "B-LOC",
    )  # fmt: skip


def test_folder_of_splits(tmp_path):
    """Four columns by spaces, two by tabs, -DOCSTART-, CRLF, a BOM, U+2028 in a token, no blank line at the end."""
    write(
        tmp_path,
        train="\ufeff-DOCSTART- -X- O O\r\n\r\nAnna NNP B-NP I-PER\r\nsings VB O O\r\n\r\nRome NNP B-NP I-LOC",
        dev="in\tO\na\u2028b\tI-LOC\t\n\n\n",
        test="Eve I-PER\nAda B-PER\n",
    )
    data = read_source(tmp_path, TOKENS, 0)
    assert data.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert data.train.inputs == (("Anna", "sings"), ("Rome",))
    assert tags_of(data.train, data.labels) == [["B-PER", "O"], ["B-LOC"]]
    assert data.validation.inputs == (("in", "a\u2028b"),)
    assert tags_of(data.test, data.labels) == [["B-PER", "B-PER"]]
    assert data.warnings == ()


def test_one_file_is_cut_in_three_with_every_type_in_train(tmp_path):
    rare = "Mars\tB-PLANET\n\n"
    path = write(tmp_path, all="".join(f"w{i}\tB-PER\n\n" for i in range(99)) + rare) / "all.conll"
    for seed in range(5):
        data = read_source(path, TOKENS, seed)
        assert [len(split) for split in data.splits().values()] == [70, 10, 20]
        assert ("Mars",) in data.train.inputs
    again = read_source(path, TOKENS, 4)
    assert again.test.inputs == data.test.inputs != read_source(path, TOKENS, 0).test.inputs
    assert again.warnings == ()


def test_all_bad_lines_at_once(tmp_path):
    write(tmp_path, train="a\tB-X\nb\tB_X\nlonely\n\tO\n", test="a\tper\n")
    text = refusal(tmp_path)
    assert 'train.conll, line 2: unknown tag "B_X"' in text
    assert "train.conll, line 3: a token and no tag" in text
    assert "train.conll, line 4: a tag and no token" in text
    assert text.startswith('test.conll, line 1: unknown tag "per"\ntrain.conll, line 2')
    assert "mend: tags are O, or B-, I-" in text


def test_at_most_ten_are_listed(tmp_path):
    write(tmp_path, train="a\tX\n" * 25)
    text = refusal(tmp_path)
    assert text.count("unknown tag") == 10 and text.endswith("and 15 more")
    assert text.count("mend:") == 1  # equal advice once


def test_strict_tags(tmp_path):
    write(tmp_path, train="a\tB-X\nb\tO\nc\tI-X\n\nd\tS-X\n")
    text = refusal(tmp_path, STRICT)
    assert 'train.conll, line 3: "I-X" does not continue an entity' in text
    assert 'train.conll, line 5: "S-X" is no tag of IOB2' in text
    assert "strict-tags = false" in text


def test_lenient_repair_is_told(tmp_path):
    data = read_source(write(tmp_path, train="a\tB-X\nb\tO\nc\tI-X\n", dev="a\tO\n", test="b\tI-X\n"), TOKENS, 0)
    assert tags_of(data.train, data.labels) == [["B-X", "O", "B-X"]]
    where = f"{tmp_path}/train.conll, line 3"
    assert data.warnings == (f"2 tags continue an entity that never began and were read as its start (first: {where})",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "\n\n"}, "the training split is empty"),
        ({"train": "a\tO\nb\tO\n"}, "no entity at all in the training split"),
        ({"train": "a\tB-X\n", "dev": "c\tO\na\tB-Y\n"}, '"Y" appears in validation and never in train'),
        ({"test": "a\tB-X\n"}, "no train split here; found: test.conll"),
    ],
)
def test_refusals_of_the_whole(tmp_path, files, message):
    assert message in refusal(write(tmp_path, **files))


def test_two_files_for_a_split(tmp_path):
    write(tmp_path, train="a\tB-X\n", dev="a\tO\n", val="a\tO\n")
    assert '"dev.conll" and "val.conll" both look like the validation split' in refusal(tmp_path)


def test_eval_beside_test_is_validation_and_of_two_files_the_one_with_the_splits_name_is_read(tmp_path):
    write(tmp_path, train="a\tB-X\n", eval="b\tO\n", test="c\tO\n", testing="d\tO\n")
    data = read_source(tmp_path, TOKENS, 0)
    assert [split.inputs for split in data.splits().values()] == [(("a",),), (("b",),), (("c",),)]
    assert data.warnings == (
        '"eval.conll", beside "test.conll", is read as the validation split',
        '"testing.conll" is not used: "test.conll" is the test split',
    )


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "train.conll").write_bytes(b"a\tB-X\ncaf\xe9\tO\n")
    assert "train.conll, line 2: not UTF-8 text (byte 9 of the file)" in refusal(tmp_path)
