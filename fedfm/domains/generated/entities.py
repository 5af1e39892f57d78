"""Generated sentences with people, organisations and places to be tagged (IOB2).

Names come from Faker. A surname may be a person, a company or a town, a place may stand inside a company's name, and
lower case is all that a lower-casing body sees: the words around a name decide. Faker's names depend on its version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from faker import Faker

from fedfm.domains.examples import Examples

TYPES = ("PERSON", "ORG", "LOCATION")
LABELS = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI"))
SHARES = (0.35, 0.35, 0.3)

# Turn these to make the task harder: the share of names that are a bare surname, whatever they name, and the share of
# sentences that would suit any of the three types. Where both meet, nobody can know: together they bound the score.
AMBIGUOUS_SHARE = 0.1
OPEN_SHARE = 0.05

# By the type that a sentence is mostly about: what differs between sites that are cut by label.
TEMPLATES = {
    "PERSON": (
        "{PERSON} , who joined {ORG} last {month} , was born in {LOCATION} .",
        "{title} {PERSON} and {title} {PERSON} spoke to reporters in {LOCATION} .",
        "The {job} , {PERSON} , thanked {PERSON} for her work .",
        "{PERSON} was elected to the board of {ORG} .",
        "According to {PERSON} , the {building} by the river will stay open .",
        "{title} {PERSON} told the court that she had met {PERSON} twice .",
        "{title} {PERSON} sent the {job} back to {LOCATION} in {month} .",
        "The group was led by {PERSON} , a {job} from {LOCATION} .",
        "{PERSON} , a former {job} , died in {month} .",
        "The {job} of {ORG} , {PERSON} , and her husband own a {building} .",
    ),
    "ORG": (
        "Shares of {ORG} fell after {ORG} cut its forecast .",
        "{ORG} hired {PERSON} as head of its {LOCATION} office .",
        "The {LOCATION} office of {ORG} will be sold to {ORG} .",
        "A {job} for {ORG} said the group would not comment .",
        "{ORG} and {ORG} agreed to merge their {goods} plants .",
        "Lawyers sued {ORG} , a maker of {goods} , over the {building} .",
        "{ORG} employs a thousand workers in its {building} near {LOCATION} .",
        "The group bought {ORG} from its founder , {PERSON} .",
        "{ORG} , which sells {goods} , lost money in {month} .",
        "The {goods} unit of {ORG} named {PERSON} as its {job} .",
    ),
    "LOCATION": (
        "Heavy rain closed the {building} between {LOCATION} and {LOCATION} .",
        "The mayor of {LOCATION} met {PERSON} in {month} .",
        "Residents of {LOCATION} , south of {LOCATION} , left their homes .",
        "The {building} in {LOCATION} was closed for the day .",
        "A train with {goods} from {LOCATION} to {LOCATION} was late .",
        "In {LOCATION} , {ORG} opened a new {building} .",
        "The lake near {LOCATION} has frozen , said {PERSON} .",
        "Visitors to {LOCATION} may rent a house from {ORG} .",
        "{LOCATION} , a town of farmers , elected a {job} as mayor .",
        "The {goods} were shipped through {LOCATION} in {month} .",
    ),
}
OPEN_TEMPLATES = (
    "A report on {SUBJECT} is due in {month} .",
    "Reporters asked the {job} about {SUBJECT} again .",
    "The {job} had heard of {SUBJECT} and of {PERSON} .",
    "{SUBJECT} was in the news in {month} .",
    "Nobody in the {building} knew much about {SUBJECT} .",
    "The story of {SUBJECT} and {ORG} became a book .",
)
WORDS = {
    "title": ("Dr", "Mr", "Mrs", "Judge", "Senator", "Professor"),
    "job": ("chairman", "lawyer", "teacher", "spokesman", "doctor", "banker", "writer", "painter", "manager", "driver"),
    "building": ("bank", "port", "plant", "bridge", "school", "mill", "hotel", "park", "station", "court"),
    "goods": ("steel", "paper", "engines", "shoes", "wine", "trucks", "bricks", "tools", "toys", "boats"),
    "month": ("January", "March", "April", "May", "June", "August", "October", "December"),
}
ORG_ENDINGS = ("Group", "Bank", "Holdings", "Steel", "Partners", "Motors", "and Sons", "Systems", "Port Authority")
OPENINGS = ("", "", "On Monday , ", "Last May , ", "In the end , ", "By contrast , ", "Update : ", "In brief : ")


@dataclass(frozen=True)
class Style:
    """The people, towns and firms that a site writes about, and how its sentences begin."""

    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    cities: tuple[str, ...]
    endings: tuple[str, ...]
    openings: tuple[str, ...]


def draw_style(rng: np.random.Generator) -> Style:
    fake = Faker("en_US")
    fake.seed_instance(int(rng.integers(2**32)))

    def different(draw: Callable[[], str], count: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(draw() for _ in range(count)))

    return Style(
        first_names=different(fake.first_name, 30),
        surnames=different(fake.last_name, 30),
        cities=different(fake.city, 30),
        endings=tuple(rng.permutation(ORG_ENDINGS)[:5].tolist()),
        openings=tuple(rng.permutation(OPENINGS)[:4].tolist()),
    )


def render(subjects: np.ndarray, style: Style, rng: np.random.Generator) -> Examples:
    """One sentence mostly about each subject (int64 [N], into `TYPES`) in the site's style."""
    tagged = [_sentence(TYPES[subject], style, rng) for subject in subjects]
    return Examples("token-classification", tuple(words for words, _ in tagged), tuple(tags for _, tags in tagged))


def _sentence(subject: str, style: Style, rng: np.random.Generator) -> tuple[tuple[str, ...], np.ndarray]:
    """Words, and int64 tags into `LABELS`."""
    template = _pick(rng, OPEN_TEMPLATES if rng.random() < OPEN_SHARE else TEMPLATES[subject])
    opening = _pick(rng, style.openings)
    if opening:
        template = template[0].lower() + template[1:]
    words: list[str] = []
    tags: list[int] = []
    for part in (opening + template).split():
        slot = part.strip("{}").replace("SUBJECT", subject)
        if slot in TYPES:
            name = _name(slot, style, rng).split()
            first = 1 + 2 * TYPES.index(slot)
            words += name
            tags += [first] + [first + 1] * (len(name) - 1)
        else:
            words.append(_pick(rng, WORDS[slot]) if slot in WORDS and part != slot else part)
            tags.append(0)
    return tuple(words), np.array(tags, np.int64)


def _name(kind: str, style: Style, rng: np.random.Generator) -> str:
    surname = _pick(rng, style.surnames)
    if rng.random() < AMBIGUOUS_SHARE:
        return surname
    if kind == "PERSON":
        first = _pick(rng, style.first_names)
        return f"{first if rng.random() < 0.7 else first[0] + '.'} {surname}"
    city = _pick(rng, style.cities)
    if kind == "LOCATION":
        return city
    return f"{city if rng.random() < 0.4 else surname} {_pick(rng, style.endings)}"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]
