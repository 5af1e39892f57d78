"""Parts of a report: one HTML file that needs no network and no script, reads on a phone, and prints."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; max-width: 60rem;
       padding: 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem;
     border-bottom: 1px solid #ddd; } h3 { font-size: 1rem; }
p.lead { font-size: 1.1rem; } .note { color: #555; font-size: .9rem; } .bad { color: #a40000; white-space: pre-line; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } code { font-size: .85em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #eee; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } .text { text-align: left !important; white-space: nowrap; }
.long { text-align: left !important; overflow-wrap: anywhere; min-width: 9rem; }
thead th { border-bottom: 1px solid #888; } figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; } pre { overflow-x: auto; background: #f6f6f6; padding: .6rem;
font-size: .8rem; } .words { line-height: 2; } .word { padding: .1em .2em; } details > summary { cursor: pointer; }
@media (max-width: 40rem) { figure { overflow-x: auto; } figure.large img { max-width: 160%; } }
@media print { body { max-width: none; font-size: 11px; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
nav { display: none; } .wide { overflow: visible; } table { font-size: 9px; } th, td { padding: .1rem .3rem; }
.text { white-space: normal; } details::details-content { content-visibility: visible; } }
"""


LONG_TEXT = 24  # characters from which a cell may break anywhere
LARGE = 500  # points of a drawing's width
TEXT = ' class="text"'


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole file. sections: (anchor, heading, HTML); those without HTML are left out."""
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in there)
    body = "".join(f'<section id="{a}"><h2>{escape(h)}</h2>\n{html}</section>\n' for a, h, html in there)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n<nav>{links}</nav>\n{body}</body></html>\n'
    )


def table(rows: pd.DataFrame | Iterable[Mapping[str, Any]], digits: int = 4) -> str:
    """An HTML table; empty for no rows. Numbers have `digits` significant digits."""
    data = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if not len(data):
        return ""
    words = {name for name in data.columns if any(isinstance(value, str) and value for value in data[name])}
    head = "".join(f"<th{TEXT if name in words else ''}>{escape(str(name))}</th>" for name in data.columns)
    body = "".join(f"<tr>{''.join(_cell(value, digits) for value in row)}</tr>" for row in data.itertuples(index=False))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _cell(value: Any, digits: int) -> str:
    text = number(value, digits)
    if not isinstance(value, str):
        return f"<td>{escape(text)}</td>"
    return f'<td class="{"long" if len(text) > LONG_TEXT else "text"}">{escape(text)}</td>'


def number(value: Any, digits: int = 4) -> str:
    """As reports write it: whole numbers whole, others with `digits` significant digits, nothing for NaN."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"


def figure(svg: Path, caption: str) -> str:
    """A drawing inside the file; empty where there is none."""
    if not svg.exists():
        return ""
    drawing = svg.read_bytes()
    data, width = base64.b64encode(drawing).decode(), re.search(rb'<svg[^>]* width="([\d.]+)pt"', drawing)
    kind = ' class="large"' if width and float(width[1]) > LARGE else ""  # on a phone: scrolled, not shrunk to dust
    return (
        f'<figure{kind}><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """One paragraph; `kind`: "note" or "bad"."""
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


def folded(summary: str, html: str) -> str:
    """What opens on a click; empty where there is nothing."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>\n" if html else ""


def differences(given: Mapping[str, Any], default: Mapping[str, Any], path: str = "") -> list[dict[str, str]]:
    """Rows (key, value, default) of the keys of a configuration that are not as they are by default."""
    rows = []
    for key, value in given.items():
        full, usual = f"{path}{key}", default.get(key)
        if isinstance(value, Mapping):
            rows += differences(value, usual if isinstance(usual, Mapping) else {}, f"{full}.")
        elif value != usual:
            rows.append({"key": full, "value": str(value), "default": "" if usual is None else str(usual)})
    return rows
