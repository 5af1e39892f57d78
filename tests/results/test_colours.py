"""One colour for one thing: a domain in all figures of a run, a setting in all figures of a comparison."""

from __future__ import annotations

import re

import pandas as pd
from fake_run import PRIMARY, write_run

from fedfm.results.comparison_figures import styles_of
from fedfm.results.figures import _overview_figure, labels_figure
from fedfm.results.run_figures import _bytes, _calibration
from fedfm.results.style import PALETTE, SHADES, drawing, line_style

DOMAINS = list(PRIMARY)  # medical, finance, ner: not as the alphabet has them


def colours(axes) -> dict[str, str]:
    """Domain -> colour of its line, by the first word of the legend."""
    return {re.split(r"[ ,]", line.get_label())[0]: line.get_color() for line in axes.get_lines()}


def test_a_domain_has_one_colour_in_all_figures_of_a_run(tmp_path):
    folder = write_run(tmp_path)
    assert list(folder.info["primary"]) == DOMAINS
    expected = {domain: line_style(number)[0] for number, domain in enumerate(DOMAINS)}
    ((_, figure, _),) = _bytes(folder, "")  # the made run names no model
    assert colours(figure.axes[0]) == expected
    lines = _overview_figure(folder.metrics, PRIMARY)[0].axes[0].get_lines()
    assert [line.get_color() for line in lines[:3]] == list(expected.values())
    part = pd.DataFrame({"said": [0.6], "right": [0.5], "ece": [0.1]})
    told = pd.concat([part.assign(domain=domain) for domain in ("ner", "finance")])
    found = colours(_calibration(told, DOMAINS)[1].axes[0])
    assert {domain: found[domain] for domain in ("ner", "finance")} == {d: expected[d] for d in ("ner", "finance")}


def test_the_panels_of_labels_are_in_the_order_of_the_domains(tmp_path):
    sites = write_run(tmp_path).info["sites"]
    with drawing():
        figure, _ = labels_figure(dict(sorted(sites.items())), DOMAINS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == DOMAINS


def test_ten_settings_have_ten_colours_and_forty_are_told_apart():
    assert len({colour for colour, _, _ in styles_of([f"setting {i}" for i in range(10)]).values()}) == 10
    assert len(set(styles_of([f"setting {i}" for i in range(40)]).values())) == 40
    assert len(set(PALETTE)) == len(PALETTE) and len(set(SHADES)) == len(SHADES) == 8
