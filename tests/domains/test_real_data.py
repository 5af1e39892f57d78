"""The readers on real files: FEDFM_DATA, or ../shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedfm.config import load_config
from fedfm.domains import check_path, load_site

BESIDE = Path(__file__).parents[3] / "shared" / "data"
DATA = Path(os.environ.get("FEDFM_DATA", BESIDE))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set FEDFM_DATA to their folder")

# totals as the data's README states them: examples of each split, entities in train
SOURCES = {
    "medical/pneumonia_xray28.npz": ["3857", "524", "624"],
    "medical/bccd_cells32.npz": ["3439", "486", "961"],
    "finance/banking77": ["8989", "1003", "3079"],
    "finance/sentfin": ["7559", "950", "952"],
    "ner/wnut17": ["3291", "1006", "1287"],
    "ner/crossner_ai": ["100", "347", "431"],
    "ner/wikigold": ["1093", "166", "437"],
}
ENTITIES = {"ner/wnut17": 1901, "ner/crossner_ai": 532, "ner/wikigold": 2399}


@pytest.mark.parametrize("source", SOURCES)
def test_counts_are_those_of_the_readme(source):
    if not (DATA / source).exists():
        pytest.skip(f"{source} is not among the real data")
    report = check_path(DATA / source)
    assert report.usable and report.rows[-1][1:] == SOURCES[source]
    if source in ENTITIES:
        assert sum(int(row[1]) for row in report.rows[:-1]) == ENTITIES[source]


def test_sites_of_a_real_source():
    if not (DATA / "medical/brain_tumor_mri64.npz").exists():
        pytest.skip("the brain images are not among the real data")
    domain = {"task": "image-classification", "source": "medical/brain_tumor_mri64.npz", "partition": "dirichlet"}
    run = load_config({"data-root": str(DATA), "domains": {"medical": domain | {"max-examples": 200}}})
    sites = [load_site(run, "medical", name) for name in run.sites()]
    assert sum(len(site.train) for site in sites) == 200
    assert sum(len(site.test) for site in sites) == 511
    assert sites[0].train.inputs.shape[1:] == (64, 64, 1) and sites[0].train.inputs.dtype == np.uint8
