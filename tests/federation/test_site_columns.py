"""What a coordinator cannot have from a real site by naming its columns: they are the site's own word."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation_helpers import TEXTS, tiny, train_federation
from site_helpers import real_sites, settings_for

from fedfm.commands.site_check import examine_site
from fedfm.domains.card import DomainCard
from fedfm.errors import PolicyError
from fedfm.federation import policy
from fedfm.federation.messages import Order, SiteCard
from fedfm.federation.real_site import RealSite

SITES = {"finance-1": "finance", "finance-2": "finance"}
ALL = TEXTS | {"max-examples": 0}


def customers(folder: Path, names: int = 30) -> dict[str, str]:
    """A table for each site of 80 rows: one of some names, a text, and one of two labels."""
    rows = [f"Jane Roe {n % names},letter {n},{label}" for n in range(40) for label in ("good", "bad")]
    for site in SITES:
        (folder / f"{site}.csv").write_text("\n".join(["customer,text,label", *rows]), encoding="utf-8")
    return {site: str(folder / f"{site}.csv") for site in SITES}


@pytest.mark.parametrize("asked", [("customer", "text"), ("text", "customer"), ("customer", "label")])
def test_other_columns_than_the_sites_are_refused_with_what_its_owner_may_do(tmp_path, asked):
    config = tiny(tmp_path / "runs", finance=ALL | dict(zip(("text-column", "label-column"), asked, strict=True)))
    with pytest.raises(PolicyError) as caught:
        train_federation(config, real_sites(tmp_path, SITES, sources=customers(tmp_path)))
    assert "letter 1" not in str(caught.value) and "Jane Roe" not in str(caught.value)
    for key, which, own, wanted in (
        ("text-column", "texts", "text", asked[0]), ("label-column", "labels", "label", asked[1]),
    ):  # fmt: skip
        what = f'was asked to read its {which} from the column "{wanted}", and its site.toml says "{own}"'
        assert (what in str(caught.value)) == (own != wanted)
        allowed = f'the site\'s owner allows the other with {key} = "{wanted}" in its site.toml'
        assert (allowed in str(caught.value)) == (own != wanted)


def test_an_order_without_a_query_before_it_is_refused_as_well(tmp_path):
    config = tiny(tmp_path / "runs", finance=ALL | {"label-column": "text"})
    card = DomainCard("finance", "text-classification", ("a", "b"))
    order = Order(("finance-1",), 1, card, config.model_dump_json(by_alias=True), folder="/runs/one")
    site = RealSite(settings_for(tmp_path, "finance-1", "finance", source=customers(tmp_path)["finance-1"]))
    with pytest.raises(PolicyError, match='labels from the column "text"'):
        site.accept(order, {})


def test_the_columns_of_a_sites_own_word_are_read(tmp_path):
    """As an owner allows them whose labels stand in another column."""
    config = tiny(tmp_path / "runs", finance=ALL | {"text-column": "text", "label-column": "customer"})
    sources = customers(tmp_path, names=3)
    done = train_federation(config, real_sites(tmp_path, SITES, sources=sources, own={"label-column": "customer"}))
    counts = done.folder.info["sites"]["finance-1"]["label_counts"]["train"]
    assert set(counts) == {"Jane Roe 0", "Jane Roe 1", "Jane Roe 2"}


def test_labels_that_are_nearly_as_many_as_examples_stay_at_the_site(tmp_path, capfd):
    """30 of them in 80 rows, of which fewer than 60 are to train on."""
    config = tiny(tmp_path / "runs", finance=ALL | {"label-column": "customer"})
    own = {"label-column": "customer"}
    with pytest.raises(PolicyError) as caught:
        train_federation(config, real_sites(tmp_path, SITES, sources=customers(tmp_path, names=30), own=own))
    assert "its labels are nearly as many as its training examples" in str(caught.value)
    assert "Jane Roe" not in str(caught.value)
    log = capfd.readouterr().err
    assert "30 labels for " in log and 'the column "customer"' in log
    problems = [found for found in examine_site(tmp_path / "finance-1.toml", offline=True) if found.check == "data"]
    assert problems[0].state == "problem" and "30 labels, nearly as many" in problems[0].found


@pytest.mark.parametrize(
    ("task", "labels", "examples", "least", "refused"),
    [
        ("text-classification", 21, 41, 2.0, True),
        ("text-classification", 21, 42, 2.0, False),
        ("image-classification", 21, 41, 2.0, True),
        ("text-classification", 20, 10, 2.0, False),  # a small site
        ("token-classification", 99, 100, 2.0, False),  # B- and I- of types
        ("text-classification", 21, 41, 0.0, False),
        ("text-classification", 100, 499, 5.0, True),
    ],
)
def test_the_bound_of_examples_a_label(tmp_path, task, labels, examples, least, refused):
    names = tuple(map(str, range(labels)))
    counts = {"sentences": examples} if task == "token-classification" else {names[0]: examples}
    card = SiteCard("finance-1", "finance", task, names, None, {"train": counts}, "", "")
    settings = settings_for(tmp_path, "finance-1", "finance", min_examples_per_label=least)
    assert bool(policy.problems_of_card(settings, card)) == refused


def test_where_data_lie_and_what_is_odd_about_them_stays_at_the_site(tmp_path, capfd):
    """A folder of tables with one that is not used, which a warning names."""
    sources = {}
    for site in SITES:
        secret = tmp_path / f"{site} ward 7"
        secret.mkdir()
        table = Path(customers(tmp_path)[site]).read_text(encoding="utf-8")
        for name in ("train", "training"):
            (secret / f"{name}.csv").write_text(table, encoding="utf-8")
        sources[site] = str(secret)
    done = train_federation(tiny(tmp_path / "runs", finance=ALL), real_sites(tmp_path, SITES, sources=sources))
    words = "".join(
        (done.folder.path / name).read_text(encoding="utf-8") for name in ("events.jsonl", "run.json", "report.html")
        if (done.folder.path / name).exists()
    )  # fmt: skip
    for site in SITES:
        assert f'site \\"{site}\\" has 4 warnings about its data: its own log says more' in words
    assert "ward 7" not in words and "training.csv" not in words
    assert done.folder.info["sites"]["finance-1"]["source"] == ""
    log = capfd.readouterr().err
    assert 'fedfm: of the data: "training.csv" is not used' in log
