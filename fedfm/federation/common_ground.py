"""What the sites of a domain have in common: one list of labels, one image shape, enough between them to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedfm.domains.card import DomainCard
from fedfm.domains.checks import nothing_to_tell_apart, single_class
from fedfm.errors import DataError
from fedfm.federation.messages import SiteCard


def agree(domain: str, cards: Sequence[SiteCard]) -> DomainCard:
    """One list of labels and one image shape for a domain of sites. Raises DataError when images differ.

    `cards`: of its sites, in order of name.
    """
    first = cards[0]
    shapes = {card.image_shape: card.site for card in reversed(cards)}
    if len(shapes) > 1:
        listed = ", ".join(f"{site}: {shape}" for shape, site in sorted(shapes.items(), key=lambda item: item[1]))
        mend = f"set domains.{domain}.image-size to one size; grey and colour cannot mix"
        what = f"the sites' images differ in (channels, height, width): {listed}"
        raise DataError(what, where=f"domain {domain}", mend=mend)
    if any(card.labels != first.labels for card in cards):
        known = {label for card in cards for label in card.labels}
        return DomainCard(domain, first.task, tuple(sorted(known, key=_tag_order)), first.image_shape)
    return DomainCard(domain, first.task, first.labels, first.image_shape)


def _tag_order(label: str) -> tuple[bool, str, str]:
    """ "O" first, then by type, B- before I-; plain class names by name."""
    prefix, dash, kind = label.partition("-")
    return (label != "O", kind if dash and prefix in "BI" else label, prefix)


def check_together(domain: str, cards: Sequence[SiteCard], missing: Sequence[str] = ()) -> list[str]:
    """Warnings of a domain whose sites each have a source of their own. Raises DataError where they cannot train.

    What a site lacks others may have: it is looked for here, in the counts that the sites tell. `missing`: sites that
    may come later, and bring the classes that those of `cards` only know by name.
    """
    tagged = cards[0].task == "token-classification"
    trained = {name for card in cards for name in _names(card, "train", tagged)}
    warnings = []
    if found := nothing_to_tell_apart(trained, tagged):
        known = {label for card in cards for label in card.labels} - ({"O"} if tagged else set())
        if not missing or nothing_to_tell_apart(known, tagged):
            mend = "a classifier needs examples of two classes, at one site or at several"
            what = f"the training data of all its sites together have {found}"
            raise DataError(what, where=f"domain {domain}", mend="" if tagged else mend)
        warnings.append(
            f"the training data of the sites of domain {domain} that are there have {found}: nothing can be learned "
            f"before {_any_of(missing)} comes"
        )
    here = " that is there" if missing else ""
    for card in cards:
        for split in ("validation", "test"):
            if unseen := sorted(_names(card, split, tagged) - trained):
                warnings.append(f"{split} of site {card.site} has {_listed(unseen)}, which no site{here} trains on")
    are_there = " that are there" if missing else ""
    return warnings + _unranked(domain, cards, are_there) + _strangers(domain, cards, are_there)


def _unranked(domain: str, cards: Sequence[SiteCard], here: str) -> list[str]:
    """Splits of images that have one class over all sites; of one site alone its own warnings tell."""
    warnings = []
    for split in ("validation", "test") if cards[0].task == "image-classification" and len(cards) > 1 else ():
        found = {name for card in cards for name in _names(card, split, tagged=False)}
        if len(found) == 1:
            warnings.append(single_class(f"the {split} data of all sites of domain {domain}{here} together", *found))
    return warnings


def _strangers(domain: str, cards: Sequence[SiteCard], here: str) -> list[str]:
    """Sites whose labels are those of no other: perhaps they mean the same, and write it otherwise."""
    holders: dict[str, int] = {}
    for card in cards:
        for label in card.labels:
            holders[label] = holders.get(label, 0) + 1
    shared = {label for label, count in holders.items() if count > 1 and label != "O"}
    return [
        f"site {card.site} shares no label with the other sites of domain {domain}{here}: it has "
        f"{_listed(label for label in card.labels if label != 'O')}"
        for card in cards
        if len(cards) > 1 and shared.isdisjoint(card.labels) and not {"O"}.issuperset(card.labels)
    ]


def _names(card: SiteCard, split: str, tagged: bool) -> set[str]:
    """Classes, or entity types, of which a site has examples."""
    return {name for name, count in card.label_counts[split].items() if count and not (tagged and name == "sentences")}


def _any_of(names: Sequence[str]) -> str:
    """The first three."""
    return " or ".join(names[:3]) + (" or another" if len(names) > 3 else "")


def _listed(names: Iterable[str]) -> str:
    """The first five, in quotes."""
    names = [f'"{name}"' for name in names]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
