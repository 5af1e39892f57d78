"""The shipped tokenizer of the tiny body: what the script builds, whole on ASCII, in step with words."""

from __future__ import annotations

import json
import string
from importlib.metadata import version

import pytest
from transformers import PreTrainedTokenizerFast

from fedfm.config import RunConfig
from fedfm.domains.generated import generate_site


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("build_tiny_tokenizer")


@pytest.fixture(scope="module")
def tokenizer(script) -> PreTrainedTokenizerFast:
    special = {f"{role}_token": token for role, token in script.SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_file=str(script.FOLDER / "tokenizer.json"), **special)


@pytest.fixture
def same_versions(script) -> None:
    provenance = json.loads((script.FOLDER / "provenance.json").read_text())
    here = {package: version(package) for package in provenance["versions"]}
    if here != provenance["versions"]:
        pytest.skip(f"built with {provenance['versions']}, here are {here}: a rebuild may differ")


@pytest.mark.usefixtures("same_versions")
def test_shipped_files_equal_a_rebuild(script):
    assert script.main(["--check"]) == 0


@pytest.mark.usefixtures("same_versions")
def test_check_names_the_file_that_differs(script, tmp_path, capsys):
    assert script.main(["--folder", str(tmp_path)]) == 0
    (tmp_path / "tokenizer.json").write_text("{}")
    assert script.main(["--check", "--folder", str(tmp_path)]) == 1
    assert f"{tmp_path / 'tokenizer.json'}: differs from a rebuild" in capsys.readouterr().err


def test_only_json_is_shipped(script):
    assert {path.suffix for path in script.FOLDER.iterdir()} == {".json"}


def test_vocabulary(script, tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == script.VOCABULARY
    assert tokenizer.convert_tokens_to_ids(list(script.SPECIAL.values())) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0


def test_generated_text_has_no_unknown_token(tokenizer):
    config = RunConfig(seed=3)
    texts = list(generate_site(config, "finance", "finance-1").train.inputs)
    texts += [" ".join(words) for words in generate_site(config, "ner", "ner-2").train.inputs]
    lengths = []
    for ids in tokenizer(texts).input_ids:
        assert tokenizer.unk_token_id not in ids
        lengths.append(len(ids))
    assert max(lengths) <= 96
    assert sum(length <= 64 for length in lengths) >= 0.99 * len(lengths)  # the default of local.max-length


@pytest.mark.parametrize("text", [string.printable, "zqxj Q9k 0x7F a_b-c%d {e}|~`^", "Zürich café naïve"])
def test_ascii_and_accented_letters_have_no_unknown_token(tokenizer, text):
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_every_ascii_pair_has_no_unknown_token(tokenizer):
    signs = string.ascii_letters + string.digits + string.punctuation
    pairs = [first + second for first in signs for second in signs]
    assert tokenizer.unk_token_id not in {token for ids in tokenizer(pairs).input_ids for token in ids}


def test_case_and_special_tokens(tokenizer):
    assert tokenizer.tokenize("Profit ROSE") == ["profit", "rose"]
    ids = tokenizer("profit rose", "costs fell").input_ids
    names = ["[CLS]", "profit", "rose", "[SEP]", "costs", "fell", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids) == names


def test_word_ids_follow_given_words(tokenizer):
    """Each word has at least one piece, its pieces are neighbours, special tokens belong to no word."""
    sentences = generate_site(RunConfig(), "ner", "ner-1").validation.inputs
    encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, padding=True)
    for number, words in enumerate(sentences):
        owners = [owner for owner in encoded.word_ids(number) if owner is not None]
        assert owners == sorted(owners)
        assert set(owners) == set(range(len(words)))
    owners = tokenizer(["Xyzzyq", "of", "O'Neil"], is_split_into_words=True).word_ids()
    assert owners[0] is None
    assert owners.count(0) > 1
    assert owners.count(2) >= 3
    assert owners[-1] is None
