"""Build the tokenizer of the built-in `tiny` body: WordPiece, lower-cased, trained on generated text only.

    python scripts/build_tiny_tokenizer.py            # writes fedfm/models/tiny_tokenizer/*.json
    python scripts/build_tiny_tokenizer.py --check    # exit code 1 if what is shipped differs from a rebuild

The same versions of Faker, NumPy and tokenizers give the same bytes; `provenance.json` names those that were used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import string
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fedfm.domains.generated import entities, sentences

FOLDER = Path(__file__).parents[1] / "fedfm" / "models" / "tiny_tokenizer"
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
VOCABULARY = 2500
MAX_LENGTH = 512  # tokens; the body's position table may be shorter
STYLES, SENTENCES_PER_STYLE = 40, 120


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the tokenizer of the tiny body.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the shipped files differ")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    built = build()
    if not options.check:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, text in built.items():
            (options.folder / name).write_text(text, encoding="utf-8", newline="\n")
        return 0
    different = [name for name, text in built.items() if _read(options.folder / name) != text]
    for name in different:
        print(f"{options.folder / name}: differs from a rebuild; run this script without --check", file=sys.stderr)
    return 1 if different else 0


def build() -> dict[str, str]:
    """File name -> content."""
    corpus = generated_corpus()
    settings = {f"{role}_token": token for role, token in SPECIAL.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH, "do_lower_case": True}
    provenance = {
        "text": f"generated: {len(corpus)} sentences of fedfm.domains.generated",
        "text-sha256": corpus_sha256(corpus),
        "versions": {package: version(package) for package in ("faker", "numpy", "tokenizers")},
    }
    return {
        "tokenizer.json": tokenizer_for(learn_vocabulary(corpus)).to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True) + "\n",
        "provenance.json": json.dumps(provenance, indent=2, sort_keys=True) + "\n",
    }


def generated_corpus() -> list[str]:
    """Finance sentences and named-entity sentences in many styles, none of them the style of a site of a run."""
    corpus: list[str] = []
    for number in range(STYLES):
        rng = np.random.default_rng([*b"tiny tokenizer", number])
        kinds = rng.integers(3, size=SENTENCES_PER_STYLE)
        corpus += sentences.render(kinds, sentences.draw_style(rng), rng).inputs
        corpus += (" ".join(words) for words in entities.render(kinds, entities.draw_style(rng), rng).inputs)
    return corpus


def corpus_sha256(corpus: list[str]) -> str:
    return hashlib.sha256("\n".join(corpus).encode()).hexdigest()


def learn_vocabulary(corpus: list[str]) -> dict[str, int]:
    """Token -> id: special tokens, every ASCII character (and as a continuation), then pieces by their frequency.

    The trainer numbers the characters that it meets in the order of a randomly seeded hash table, and breaks ties by
    those numbers. Handing it every character as a special token fixes the numbers, and so the vocabulary.
    """
    characters = string.ascii_lowercase + string.digits
    fixed = [*SPECIAL.values(), *string.punctuation, *characters, *(f"##{character}" for character in characters)]
    learner = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=fixed, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    return learner.get_vocab()


def tokenizer_for(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's pipeline over `vocabulary`: [CLS] text [SEP], lower case, accents stripped."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in (SPECIAL["cls"], SPECIAL["sep"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
