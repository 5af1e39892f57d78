"""From the configuration to a site's data; counts; the report of `fedfm data check`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedfm.config import load_config
from fedfm.domains import check_path, label_counts, load_site
from fedfm.domains.draws import cut_missing, generator, limit
from fedfm.domains.examples import Examples
from fedfm.domains.loading import locate
from fedfm.errors import DataError


def write_texts(path, count, classes=2):
    rows = [json.dumps({"text": f"{path.stem} {i}", "label": f"c{i % classes}"}) for i in range(count)]
    path.write_text("\n".join(rows))
    return path


def config(root, **domain):
    table = {"task": "text-classification", **{key.replace("_", "-"): value for key, value in domain.items()}}
    return load_config({"data-root": str(root), "domains": {"bank": table}})


def test_a_source_is_cut_once_and_completely(tmp_path):
    write_texts(tmp_path / "news.jsonl", 100)
    run = config(tmp_path, source="news.jsonl", sites=3, partition="dirichlet")
    sites = [load_site(run, "bank", name) for name in ("bank-1", "bank-2", "bank-3")]
    assert sum(len(site.train) for site in sites) == 70 and sum(len(site.test) for site in sites) == 20
    assert len({text for site in sites for split in site.splits().values() for text in split.inputs}) == 100
    assert {site.labels for site in sites} == {("c0", "c1")} and len({site.sha256 for site in sites}) == 1
    (tmp_path / "news.jsonl").unlink()  # kept in this process
    assert load_site(run, "bank", "bank-2") is sites[1]


def test_seed_and_domain_key_the_cut(tmp_path):
    write_texts(tmp_path / "news.jsonl", 100)
    run = config(tmp_path, source="news.jsonl")
    first = load_site(run, "bank", "bank-1").train.inputs
    assert load_site(run.replace("seed=1"), "bank", "bank-1").train.inputs != first
    assert load_site(run.replace("rounds=9"), "bank", "bank-1").train.inputs == first


def test_sites_with_sources_of_their_own_are_read_whole(tmp_path):
    write_texts(tmp_path / "north.jsonl", 40)
    far = write_texts(tmp_path / "south.jsonl", 20)
    tables = [{"name": "north", "source": "north.jsonl"}, {"name": "south", "source": str(far)}]
    run = config(tmp_path / ".", site=tables)
    assert [len(load_site(run, "bank", name).train) for name in ("north", "south")] == [28, 14]
    assert load_site(run, "bank", "south").test.inputs[0].startswith("south")


def test_the_order_of_site_tables_does_not_matter(tmp_path):
    write_texts(tmp_path / "news.jsonl", 60)
    for source in ("news.jsonl", "generated"):
        one, other = (config(tmp_path, source=source, site=[{"name": n} for n in names]) for names in ("ab", "ba"))
        for site in "ab":
            assert load_site(one, "bank", site).train.inputs == load_site(other, "bank", site).train.inputs
        assert load_site(one, "bank", "a").train.inputs != load_site(one, "bank", "b").train.inputs


def test_max_examples_keeps_proportions(tmp_path):
    """Classes 60 : 20 of 80 (max 40 of the training split of 56 = 42 + 14): 30 and 10."""
    path = tmp_path / "news.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i}", "label": "ab"[i % 4 == 0]}) for i in range(80)))
    site = load_site(config(tmp_path, source="news.jsonl", sites=1, max_examples=40), "bank", "bank-1")
    assert label_counts(site)["train"] == {"a": 30, "b": 10}
    assert len(site.test) == 16


def test_limit_and_cut_keep_every_label():
    labels = np.array([0] * 97 + [1, 2, 3])
    examples = Examples("text-classification", tuple(map(str, range(100))), labels)
    for seed in range(10):
        assert set(limit(examples, 10, generator(seed)).labels) == {0, 1, 2, 3}
        cut = cut_missing(examples, ["validation", "test"], generator(seed))
        assert set(cut["train"].labels) == {0, 1, 2, 3} and [len(cut[name]) for name in cut] == [70, 10, 20]
    assert len(limit(examples, 10, generator(0))) == 10
    assert limit(examples, 0, generator(0)) is limit(examples, 100, generator(0)) is examples


def test_generators_differ_by_seed_and_words():
    draws = {generator(*key).random() for key in ((0,), (1,), (0, "a"), (0, "a", "b"), (0, "b", "a"))}
    assert len(draws) == 5 and generator(0, "a").random() in draws


def test_refusals(tmp_path):
    run = config(tmp_path, source="gone.jsonl")
    with pytest.raises(
        DataError, match=r"gone.jsonl: no such file or folder\n    mend: correct the path; relative sources"
    ):
        load_site(run, "bank", "bank-1")
    with pytest.raises(DataError, match='domain bank has no site "bank-7"\n    mend: sites are bank-1, bank-2'):
        load_site(run, "bank", "bank-7")


def test_generated_data_go_through_the_same_door(tmp_path):
    site = load_site(config(tmp_path), "bank", "bank-1")
    assert site.source == "generated" and sum(label_counts(site)["train"].values()) == len(site.train) > 0


def test_locate_prefers_files_to_hub_ids(tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name", str(tmp_path)) == tmp_path / "owner" / "name"
    assert str(locate("owner/other", str(tmp_path))) == "owner/other"
    assert locate("owner/other.csv", str(tmp_path)) == tmp_path / "owner/other.csv"
    assert locate(str(tmp_path / "x"), "elsewhere") == tmp_path / "x"


def test_report_of_a_good_source(tmp_path):
    report = check_path(write_texts(tmp_path / "news.jsonl", 100))
    assert (report.task, report.format, report.usable) == ("text-classification", "table file", True)
    assert report.header == ["label", "train", "validation", "test"]
    assert report.rows == [["c0", "35", "5", "10"], ["c1", "35", "5", "10"], ["examples", "70", "10", "20"]]
    assert len(report.sha256) == 64 and report.warnings == () and report.problems == ()


def test_report_of_tags_counts_entities(tmp_path):
    (tmp_path / "train.conll").write_text("a\tB-X\nb\tI-X\nc\tB-X\nd\tB-Y\n\ne\tO\n")
    (tmp_path / "dev.conll").write_text("f\tB-Y\n")
    (tmp_path / "test.conll").write_text("g\tO\n\nh\tO\n")
    report = check_path(tmp_path)
    assert report.header == ["entity type", "train", "validation", "test"]
    assert report.rows == [["X", "2", "0", "0"], ["Y", "1", "1", "0"], ["sentences", "2", "1", "2"]]


def test_report_of_what_cannot_be_used(tmp_path):
    (tmp_path / "x.csv").write_text("text,lable\na,b\n")
    report = check_path(tmp_path / "x.csv")
    assert (report.usable, report.format, report.rows) == (False, "table file", [])
    assert report.problems[0].what.startswith('no column "label". did you mean "lable"?')
    assert check_path(tmp_path / "gone").problems[0].what == "no such file or folder"
    (tmp_path / "x.doc").write_text("")
    assert "no format that fedfm reads" in str(check_path(tmp_path / "x.doc").problems[0])
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "train.conll").write_text("a\tB-X\n")
    both = str(check_path(tmp_path).problems[0])
    assert "it could be read for text-classification and for token-classification" in both
    assert "--task text-classification" in both
