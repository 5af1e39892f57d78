"""A site can see in its own record what of its card has left."""

from __future__ import annotations

import hashlib
import json

from recorded_sites import SITES, run_recorded

from fedfm.cli import main
from fedfm.results.agreement import agree
from fedfm.results.audit import read_chain


def test_the_card_stands_in_the_sites_record_as_it_was_sent(tmp_path, capsys):
    grid, done = run_recorded(tmp_path)
    coordinator = read_chain(done.folder.path / "audit.jsonl")
    for node, (site, domain) in SITES.items():
        chain = grid.chain(node)
        (sent,) = [entry.fields for entry in chain.entries.values() if entry.kind == "card-out"]
        text = sent["card"]
        assert hashlib.sha256(text.encode()).hexdigest() == sent["sha256"]
        assert len(text.encode()) == sent["bytes"]
        (card,) = json.loads(text)
        assert (card["site"], card["domain"]) == (site, domain)
        assert card["label_counts"] == done.folder.info["sites"][site]["label_counts"]
        assert chain.broken is None and agree(chain, coordinator).differences == []
    assert not any("card" in e.fields for e in coordinator.entries.values() if e.kind == "card-in")

    page = tmp_path / "page.html"
    assert main(["audit", "report", str(grid.folders[1] / "state" / "audit.jsonl"), "--out", str(page)]) == 0
    capsys.readouterr()
    html = page.read_text(encoding="utf-8")
    assert "what the site has told of itself" in html
    (card,) = json.loads(next(e.fields["card"] for e in grid.chain(1).entries.values() if e.kind == "card-out"))
    assert "label counts" in html and all(label in html for label in card["labels"])
