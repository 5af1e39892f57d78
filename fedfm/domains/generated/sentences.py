"""Generated finance news: one sentence, is it good, bad or no news for the company?

Counting good and bad words is not enough for all of them: costs that fall are good news, profit that failed to grow is
bad news, after "although" and "a year earlier" stands what does not decide, and some figures are no news at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfm.domains.examples import Examples

LABELS = ("negative", "neutral", "positive")
SHARES = (0.3, 0.4, 0.3)
NEGATIVE, NEUTRAL, POSITIVE = range(3)

# Turn this to make the task harder: the share of sentences with a negation, a contrast or a misleading clause.
HARD_SHARE = 0.2

# A phrase that carries its class by itself: finite verb first.
NEWS = {
    POSITIVE: (
        "won a major order", "beat market expectations", "raised its full-year outlook", "signed a profitable contract",
        "reported record results", "gained market share", "returned to profit", "achieved strong growth",
        "secured long-term funding", "raised its dividend", "improved its efficiency", "enjoyed healthy demand",
    ),
    NEGATIVE: (
        "issued a profit warning", "missed market expectations", "cut its full-year outlook", "lost a key contract",
        "reported disappointing results", "lost market share", "slipped into the red", "suffered from weak demand",
        "defaulted on a loan", "scrapped its dividend", "faced a costly lawsuit", "was hit by a strike",
    ),
    NEUTRAL: (
        "will publish its interim report in {month}", "has {count} employees", "operates in {count} countries",
        "will hold its annual meeting in {month}", "moved its head office to a new building",
        "appointed a new member of the board", "makes products for the {industry} industry",
        "owns {count} percent of the shares", "had sales of {amount}", "plans to invest {amount} over {count} years",
        "reported unchanged sales of {amount}", "said its outlook remains the same", "is listed on the stock exchange",
    ),
}  # fmt: skip
# What a company wants more of, and what it wants less of; each may rise or fall.
WANTED = ("operating profit", "net sales", "revenue", "order intake", "cash flow", "gross margin", "earnings per share")
UNWANTED = ("operating costs", "the net loss", "debt", "restructuring charges", "credit losses", "staff turnover")
MOVES = {  # up and down: past, infinitive
    +1: (("rose", "rise"), ("increased", "increase"), ("grew", "grow"), ("climbed", "climb"), ("jumped", "jump")),
    -1: (("fell", "fall"), ("decreased", "decrease"), ("declined", "decline"), ("dropped", "drop"), ("sank", "sink")),
}
TAILS = (
    "to {amount}", "by {count} percent", "in the {quarter} quarter", "from {amount} a year ago", "in {month}", "",
    "in the {industry} business", "during the period",
)  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "August", "September", "October", "November")
QUARTERS = ("first", "second", "third", "fourth")
INDUSTRIES = ("paper", "steel", "telecom", "food", "construction", "shipping", "energy", "software", "machinery")
STEMS = (
    "Alto", "Bore", "Caver", "Dano", "Elke", "Ferro", "Galen", "Halko", "Inver", "Jarvo", "Kemi", "Lumo", "Marin",
    "Nordo", "Orio", "Polar", "Quanta", "Rauta", "Sampo", "Teleste", "Umbra", "Valme", "Wester", "Xano", "Zeno",
)  # fmt: skip
ENDINGS = ("tek", "com", "bank", "steel", "line", "soft", "pharm", "group", "corp", "power", "foods", "works")
FORMS = ("Oyj", "plc", "Inc", "AG", "Ltd", "SA", "AB", "")
AMOUNTS = ("EUR {0}.{1} mn", "{0}.{1} million euros", "USD {0}.{1}m", "${0}.{1} million", "GBP {0},{1}00,000")
OPENINGS = ("", "", "{city}, {month} {count} - ", "Press release: ", "({industry}) - ")
CITIES = ("Helsinki", "London", "Zurich", "Oslo", "New York", "Vienna", "Dublin", "Madrid")
SPEAKERS = ("", "", ", the company said", ", according to its {quarter}-quarter report", ", it said on Monday")


@dataclass(frozen=True)
class Style:
    """A news desk's house style: the companies it follows and the few forms it uses of each thing."""

    companies: tuple[str, ...]
    amounts: tuple[str, ...]
    openings: tuple[str, ...]
    speakers: tuple[str, ...]
    moves: dict[int, tuple[tuple[str, str], ...]]


def draw_style(rng: np.random.Generator) -> Style:
    return Style(
        companies=tuple(f"{_pick(rng, STEMS)}{_pick(rng, ENDINGS)} {_pick(rng, FORMS)}".strip() for _ in range(30)),
        amounts=_some(rng, AMOUNTS, 2),
        openings=_some(rng, OPENINGS, 2),
        speakers=_some(rng, SPEAKERS, 3),
        moves={direction: tuple(verbs[i] for i in rng.permutation(5)[:4]) for direction, verbs in MOVES.items()},
    )


def render(classes: np.ndarray, style: Style, rng: np.random.Generator) -> Examples:
    """One sentence of each class (int64 [N]) in the site's style."""
    texts = tuple(_sentence(int(label), style, rng) for label in classes)
    return Examples("text-classification", texts, classes.astype(np.int64))


def _sentence(label: int, style: Style, rng: np.random.Generator) -> str:
    company = _pick(rng, style.companies)
    write = _hard if rng.random() < HARD_SHARE else _clause
    text = write(label, company, style, rng)
    text = _pick(rng, style.openings) + text[0].upper() + text[1:] + _pick(rng, style.speakers)
    return _fill(text, style, rng) + "."


def _clause(label: int, company: str, style: Style, rng: np.random.Generator) -> str:
    """A plain clause: a phrase that says it all, or a figure that moved."""
    if label == NEUTRAL or rng.random() < 0.5:
        return f"{company} {_pick(rng, NEWS[label])}"
    wanted, direction = _movement(label, rng)
    past, _ = _pick(rng, style.moves[direction])
    return f"{_figure(wanted, company, rng)} {past} {_pick(rng, TAILS)}".rstrip()


def _hard(label: int, company: str, style: Style, rng: np.random.Generator) -> str:
    """Words that point elsewhere than the sentence does."""
    kind = rng.integers(3)
    if label != NEUTRAL and kind == 0:
        wanted, direction = _movement(label, rng)
        _, infinitive = _pick(rng, style.moves[-direction])
        denial = _pick(rng, ("did not", "failed to", "no longer continued to"))
        return f"{_figure(wanted, company, rng)} {denial} {infinitive} {_pick(rng, TAILS)}".rstrip()
    misleading = _pick(rng, (NEGATIVE, POSITIVE)) if label == NEUTRAL else NEGATIVE + POSITIVE - label
    main = _clause(label, company, style, rng)
    other = _clause(misleading, "it" if main.startswith(company) else company, style, rng)
    if label != NEUTRAL and kind == 1:
        frame = _pick(rng, ("although {other}, {main}", "{main}, although {other}", "{other}, but now {main}"))
    else:
        frame = _pick(rng, ("{main}; a year earlier {other}", "a year earlier {other}; {main}"))
    return frame.replace("{main}", main).replace("{other}", other)


def _movement(label: int, rng: np.random.Generator) -> tuple[bool, int]:
    """Is the figure a wanted one, and which way must it move to be news of this class?"""
    wanted = bool(rng.random() < 0.6)
    return wanted, +1 if wanted == (label == POSITIVE) else -1


def _figure(wanted: bool, company: str, rng: np.random.Generator) -> str:
    name = _pick(rng, WANTED if wanted else UNWANTED)
    if company == "it":
        return f"its {name.removeprefix('the ')}"
    return f"{company}'s {name.removeprefix('the ')}" if rng.random() < 0.5 else f"{name} of {company}"


def _fill(text: str, style: Style, rng: np.random.Generator) -> str:
    amount = _pick(rng, style.amounts).format(rng.integers(1, 200), rng.integers(10))
    slots = {"month": MONTHS, "quarter": QUARTERS, "industry": INDUSTRIES, "city": CITIES}
    return text.format(amount=amount, count=rng.integers(2, 30), **{k: _pick(rng, v) for k, v in slots.items()})


def _some(rng: np.random.Generator, options: tuple, count: int) -> tuple:
    return tuple(options[i] for i in sorted(rng.permutation(len(options))[:count]))


def _pick(rng: np.random.Generator, options: tuple):
    return options[rng.integers(len(options))]
