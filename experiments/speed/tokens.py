"""How much less does a configuration compute than a loop that pads every text to the maximum length?

    python experiments/speed/tokens.py experiments/three_domains.toml data-root=../shared/data      half a minute

Counts, not seconds, so that no busy machine can change them: the tokens that pass through the body in one round of
training, epochs and last batches included, when texts are padded to max-length, to the longest of their batch (exact:
the same batches, the same results), and with length buckets (other batches of the same examples). The arithmetic of a
Transformer is proportional to them. Writes results/tokens.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from fedfm.config import RunConfig
from fedfm.domains import load_site
from fedfm.engines.running import load_config, quiet_libraries
from fedfm.models.body import load_body
from fedfm.models.features import featurize
from fedfm.training.fit import SiteWork

HERE = Path(__file__).parent
WAYS = ("to max-length", "to the longest of a batch", "with length buckets")


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quiet_libraries()
    table = tokens_of_a_round(load_config(arguments.config, *arguments.overrides))
    text = markdown(table, f"{arguments.config} {' '.join(arguments.overrides)}".strip())
    print(text)
    (HERE / "results" / "tokens.md").write_text(text + "\n", encoding="utf-8")


def tokens_of_a_round(config: RunConfig) -> dict[str, list[int]]:
    """Text domain -> tokens of its sites' steps in round 1, padding included, for each of WAYS."""
    table: dict[str, list[int]] = {}
    for site, domain in config.sites().items():
        train = load_site(config, domain, site).train
        local = config.local_for(domain)
        if train.task == "image-classification":
            continue  # an image has as many tokens as any other
        features = featurize(train, load_body(config).tokenizer, local.max_length)
        lengths, work = features.lengths(), SiteWork(site, features, config.seed, 1)
        plain, sorted_ = (work.plan(local.model_copy(update={"length_buckets": on})) for on in (False, True))
        whole = sum(map(len, plain)) * local.max_length
        counts = [whole, *(sum(len(b) * int(lengths[b].max()) for b in plan) for plan in (plain, sorted_))]
        table[domain] = np.add(table.get(domain, [0, 0, 0]), counts).tolist()
    return table


def markdown(table: dict[str, list[int]], what: str) -> str:
    """A row a domain, and their sum; in brackets how many times less than padding to max-length."""
    lines = [f"Made by `python experiments/speed/tokens.py {what}`: tokens of one round of training.", ""]
    lines += [f"| domain | {' | '.join(WAYS)} |", f"|{'---|' * (len(WAYS) + 1)}"]
    for domain, counts in (table | {"all texts": np.sum(list(table.values()), axis=0).tolist()}).items():
        lines.append(f"| {domain} | {' | '.join(f'{n:,} ({counts[0] / n:.2f}x)' for n in counts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
