"""A page as data: its tables by section, its addresses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ADDRESS = re.compile(r"""(?:src|href|srcset|action|data|poster)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""")


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


def addresses(html: str) -> list[str]:
    """What the page, or a picture inside it, would fetch or lead to outside of itself."""
    found = [first or second for first, second in ADDRESS.findall(html)]
    return [address for address in found if not address.startswith(("#", "data:"))]
