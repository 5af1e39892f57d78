"""Every page that fedfm writes, in a headless Chromium without a network: as wide as a phone, whole, quiet, alone."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, PHONE, WIDE, browser
from pages import addresses
from PIL import Image
from test_compare import tiny_source

from fedfm.commands.compare import compare
from fedfm.commands.contributions import contributions
from fedfm.commands.explain import explain
from fedfm.engines.reporting import leave_report
from fedfm.engines.running import run
from fedfm.errors import RunError

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import IMAGES, TEXTS, WORDS, Spoiler, tiny, train_federation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("small_data"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]
PAGES = ("finished", "explained", "left-out", "failed", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory, small_data) -> dict[str, Path]:
    """Page -> its file."""
    root = tmp_path_factory.mktemp("pages")
    domains = {"medical": IMAGES, "finance": TEXTS, "ner": WORDS}
    whole = run(tiny(root / "finished", "rounds=2", **domains)).folder
    return {
        "finished": whole / "report.html",
        "explained": _explained(root / "explained"),
        "left-out": leave_report(_spoilt(root / "left-out")),
        "failed": _failed(root / "failed"),
        "comparison": _comparison(root / "comparison"),
    }


def _explained(root: Path) -> Path:
    pytest.importorskip("captum", reason="the extra explain is not installed")
    config = tiny(root, medical=IMAGES, finance=TEXTS)
    folder = run(config).folder
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(root / "scan.png")
    explain(folder, [str(root / "scan.png")], "medical", "", 4, root / "why.html")
    explain(folder, [" ".join(["Profit rose by a third while the plant was shut down"] * 4)], "finance", "", 4,
            root / "why.html")  # fmt: skip
    contributions(config.to_dict())
    return folder / "report.html"


def _spoilt(root: Path):
    config = tiny(root, finance={**TEXTS, "sites": 2})
    return train_federation(config, Spoiler("finance-1", lambda d: {n: v * np.nan for n, v in d.items()})).folder


def _failed(root: Path) -> Path:
    with pytest.raises(RunError):
        run(tiny(root, "rounds=3", "local.learning-rate=1e30", "local.optimizer=sgd", finance=TEXTS))
    return next(root.glob("*/report.html"))


def _comparison(root: Path) -> Path:
    names = ["fedavg", "fedprox", "local-only", "centralised-joint"]
    return compare(tiny_source(root), {"strategy.name": names, "seed": [0, 1]}).folder / "report.html"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_address_outside_of_itself(pages, name):
    html = pages[name].read_text(encoding="utf-8")
    pictures = [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]
    assert len(pictures) >= 3
    for text in (html, *pictures):
        assert addresses(text) == []
        assert "<script" not in text


@pytest.mark.parametrize("size", [PHONE, WIDE], ids=["phone", "desktop"])
def test_pages_fit_their_window_and_nothing_complains(pages, size, tmp_path):
    with browser(tmp_path, size) as window:
        for name, file in pages.items():
            window.open(file)
            width = window.ask("return document.documentElement.scrollWidth")
            assert width <= size[0], f"{name} is {width} pixels wide"
            broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
            assert window.ask(broken) == [], name
            assert window.ask("return document.images.length") >= 3, name
            assert window.complaints() == [], name


def test_paper_has_all_messages_and_no_cut_figure(pages, tmp_path):
    """What is folded on the screen is printed: a data office files it."""
    shown = "return [...document.querySelectorAll('details td')].filter(e => e.checkVisibility(%s)).length"
    shown %= "{contentVisibilityAuto: true}"
    with browser(tmp_path, WIDE) as window:
        window.open(pages["finished"])
        assert window.ask(shown) == 0
        window.as_on_paper()
        assert window.ask(shown) == window.ask("return document.querySelectorAll('details td').length") > 0
        too_wide = "return [...document.images].filter(i => i.width > document.body.clientWidth).map(i => i.alt)"
        assert window.ask(too_wide) == []
        sheets = tmp_path / "page.pdf"
        window.print_to(sheets)
        assert sheets.read_bytes().startswith(b"%PDF")
