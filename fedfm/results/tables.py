"""A table as CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedfm.results.files import replace_text

ESCAPES = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"}

NONE = "-"  # in the place of a score that is undefined


def write_table(stem: Path, table: pd.DataFrame, caption: str, strong: Sequence[tuple[int, str]] = ()) -> None:
    """`<stem>.csv`, `.md`, `.tex`. strong: (row number, column) of cells set in bold in the last two."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    replace_text(stem.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    rows = [
        [(_text(value), (number, column) in strong) for column, value in zip(table.columns, row, strict=True)]
        for number, row in enumerate(table.itertuples(index=False))
    ]
    head = list(map(str, table.columns))
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    lines += [" | ".join(f"**{text}**" if bold else text for text, bold in row) for row in rows]
    replace_text(stem.with_suffix(".md"), "\n".join([*(f"| {line} |" for line in lines), "", caption, ""]))
    replace_text(stem.with_suffix(".tex"), _latex(head, rows, caption))


def _latex(head: list[str], rows: list[list[tuple[str, bool]]], caption: str) -> str:
    def cell(text: str, bold: bool = False) -> str:
        safe = "".join(ESCAPES.get(sign, sign) for sign in text).replace("±", r"$\pm$")
        return rf"\textbf{{{safe}}}" if bold else safe

    body = [" & ".join(cell(*one) for one in row) + r" \\" for row in rows]
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{cell(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule",
        " & ".join(map(cell, head)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def main_table(summary: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[int, str]]]:
    """Setting by domain, `mean ± sd` of the shown models' primary scores; and which cells are the highest.

    "-" where no seed has a score. All cells whose mean is printed like the highest are among the highest.
    """
    shown = summary[summary["shown"] & summary["primary"]]
    domains, settings = list(dict.fromkeys(shown["domain"])), list(dict.fromkeys(shown["setting"]))
    by = shown.set_index(["setting", "domain"])
    rows, strong = [], []
    for setting in settings:
        row = {"setting": setting, "model": by.loc[setting]["model"].iloc[0]}
        for domain in domains:
            row[domain] = _score(by.loc[(setting, domain)]) if (setting, domain) in by.index else NONE
        first = by.loc[setting].iloc[0]
        rows.append(row | {"MB": f"{first['megabytes']:.1f}", "seconds": f"{first['seconds']:.0f}"})
    for domain in domains:
        means = shown[shown["domain"] == domain].set_index("setting")["mean"].dropna()
        best = _printed(means.max())
        strong += [(settings.index(name), domain) for name, mean in means.items() if _printed(mean) == best]
    return pd.DataFrame(rows), strong


def _score(row: pd.Series) -> str:
    if math.isnan(row["mean"]):
        return NONE
    return _printed(row["mean"]) + ("" if math.isnan(row["sd"]) else f" ± {row['sd']:.3f}")


def _printed(mean: float) -> str:
    return f"{mean:.3f}"
