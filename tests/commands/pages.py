"""A page as data: its tables by section, its addresses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

FETCHED = {"src", "href", "xlink:href", "srcset", "action", "poster", "data", "background", "formaction"}
URL = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")


class Page(HTMLParser):
    """`tables`: section -> its tables, each a list of rows of cell texts, the head first."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.section, self.tables = html, "", {}
        self.cell: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.section = dict(attrs)["id"]
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.tables[self.section][-1][-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


class Addresses(HTMLParser):
    """`found`: what attributes and styles name, of HTML or of a drawing."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value or "" for name, value in attrs if name in FETCHED]
        self.found += [value for name, value in attrs if tag == "meta" and name == "http-equiv"]  # which can lead away
        self.found += [url for _, value in attrs for url in URL.findall(value or "")]

    def handle_data(self, data):
        if self.lasttag == "style":
            self.found += URL.findall(data)


def addresses(text: str) -> list[str]:
    """What a page or a drawing would fetch from, or lead to, outside of itself."""
    return [address for address in Addresses(text).found if not address.startswith(("#", "data:"))]
