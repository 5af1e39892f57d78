"""Sites with sources of their own: what one lacks another may have, and what they lack together is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation_helpers import tiny, train_federation

from fedfm.domains import check_path
from fedfm.errors import DataError
from fedfm.federation.common_ground import check_together
from fedfm.federation.messages import SiteCard

TEXTS = {
    "good": ("profit rose", "a strong quarter"),
    "bad": ("profit fell", "sales were weak"),
    "1": ("up",),
    "0": ("down",),
}


def write_texts(folder: Path, **labels: int) -> str:
    """A folder of splits; `labels`: label -> examples in train; `test_<label>` of it in test."""
    folder.mkdir(parents=True)
    for split, prefix in (("train", ""), ("test", "test_")):
        own = {n.removeprefix(prefix): c for n, c in labels.items() if n.startswith("test_") == bool(prefix)}
        rows = [
            f"{TEXTS[label][i % len(TEXTS[label])]} {i},{label}" for label, count in own.items() for i in range(count)
        ]
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(folder)


def write_words(folder: Path, entities: int) -> str:
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        sentences = ["Acme\tB-ORG\nfell\tO\n"] * entities + ["it\tO\nrained\tO\n"] * 4
        (folder / f"{split}.conll").write_text("\n".join(sentences), encoding="utf-8")
    return str(folder)


def card(site: str, labels: tuple[str, ...], **train: int) -> SiteCard:
    """What a site tells that has these classes, or entity types, in its training split and nothing else."""
    task = "token-classification" if "O" in labels else "text-classification"
    counts = {"train": train, "validation": {}, "test": {}}
    return SiteCard(site, "news", task, labels, None, counts, "own", "0" * 64)


def own(task: str, **sources: str) -> dict:
    return {"task": task, "site": [{"name": name, "source": source} for name, source in sources.items()]}


def news(tmp_path: Path, **sites: dict[str, int]):
    sources = {name: write_texts(tmp_path / name, **labels) for name, labels in sites.items()}
    return tiny(tmp_path / "runs", news=own("text-classification", **sources))


def warnings(done) -> list[str]:
    return [event["message"] for event in done.events("warning")]


def test_a_class_and_a_single_example_at_each_site_make_a_domain(tmp_path):
    config = news(tmp_path, a={"good": 8, "test_good": 4, "test_bad": 2}, b={"bad": 1}, c={"good": 3, "bad": 3})
    done = train_federation(config)
    assert done.folder.info["status"] == "finished"
    assert done.folder.rounds["sites_used"].tolist() == [0, 3]
    tested = done.folder.metrics.query("scope == 'domain' and split == 'test' and metric == 'accuracy'")
    assert tested["num_examples"].tolist() == [6]  # of b and c the test files are empty
    assert not [message for message in warnings(done) if "no site trains on" in message or "shares no label" in message]


def test_sites_that_have_one_class_between_them_are_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        train_federation(news(tmp_path, a={"good": 4}, b={"good": 4, "test_bad": 1}))
    assert str(caught.value).startswith(
        'domain news: the training data of all its sites together have a single class, "good"\n    mend: '
    )


def test_a_class_that_no_site_trains_on_and_labels_of_one_site_only_are_told(tmp_path):
    done = train_federation(
        news(tmp_path, a={"good": 4, "bad": 4}, b={"good": 4, "bad": 4, "test_1": 2}, c={"0": 4, "test_0": 1})
    )
    said = warnings(done)
    assert 'test of site b has "1", which no site trains on' in said
    assert 'site c shares no label with the other sites of domain news: it has "0"' in said
    assert not [message for message in said if message.startswith("site a shares")]


def test_a_site_without_an_entity_learns_from_the_others_sites_without_any_do_not(tmp_path):
    sources = {"a": write_words(tmp_path / "a", 4), "b": write_words(tmp_path / "b", 0)}
    done = train_federation(tiny(tmp_path / "runs", ner=own("token-classification", **sources)))
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]
    sources = {"b": sources["b"], "c": write_words(tmp_path / "c", 0)}
    with pytest.raises(
        DataError, match="domain ner: the training data of all its sites together have no entity at all"
    ):
        train_federation(tiny(tmp_path / "runs", ner=own("token-classification", **sources)))


def test_classes_that_only_a_missing_site_can_bring_are_waited_for():
    """Two classes are known by name, of one there are examples: a later site may hold the other."""
    here = [card("a", ("bad", "good"), good=4), card("b", ("bad", "good"), good=2)]
    (said,) = check_together("news", here, ["c", "d"])
    assert said == (
        'the training data of the sites of domain news that are there have a single class, "good": nothing can be '
        "learned before c or d comes"
    )
    with pytest.raises(DataError, match="all its sites together have a single class"):
        check_together("news", here)
    with pytest.raises(DataError, match="all its sites together have a single class"):  # one output: nothing may come
        check_together("news", [card("a", ("good",), good=4)], ["c"])


def test_of_missing_sites_nothing_is_said():
    here = [card("a", ("bad", "good"), good=4, bad=4), card("b", ("up",), up=4)]
    here[0].label_counts["test"]["good"] = 1
    here[1].label_counts["test"]["down"] = 1
    assert check_together("news", here, ["c"]) == [
        'test of site b has "down", which no site that is there trains on',
        'site a shares no label with the other sites of domain news that are there: it has "bad", "good"',
        'site b shares no label with the other sites of domain news that are there: it has "up"',
    ]


def test_in_a_simulation_nobody_comes_later(tmp_path):
    """b, whose data are refused, can be done without, but it will not bring the other class."""
    config = news(tmp_path, a={"good": 4, "test_bad": 1}, b={"bad": 4})
    (tmp_path / "b" / "train.csv").write_text("no such columns\n", encoding="utf-8")
    with pytest.raises(DataError, match="all its sites together have a single class"):
        train_federation(config.replace("domains.news.minimum-sites=1", "engine.wait=0.1"))


def test_sites_without_a_tag_are_no_strangers():
    tags = ("O", "B-PER", "I-PER")
    here = [card("a", tags, sentences=4, PER=4), card("b", ("O",), sentences=4), card("c", tags, sentences=1, PER=1)]
    assert check_together("ner", here) == []


def test_the_only_site_of_a_domain_is_held_to_all_of_it(tmp_path):
    with pytest.raises(DataError, match='the training split has a single class, "good"'):
        train_federation(news(tmp_path, a={"good": 4}))


def test_data_check_takes_one_sites_part_when_told_so(tmp_path):
    """Alone it is refused; as a part it is told what the other sites must bring."""
    folder = Path(write_texts(tmp_path / "a", good=4, test_bad=1))
    assert 'a single class, "good"' in check_path(folder).problems[0].what
    found = check_path(folder, part=True)
    assert found.usable
    assert 'the training split has a single class, "good": other sites of its domain must have more' in found.warnings
