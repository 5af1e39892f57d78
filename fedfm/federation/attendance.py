"""Who is there in each round of a run across machines: told as it changes, and waited for as long as a run may wait."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedfm.errors import TooFewSitesError
from fedfm.federation.door import Change, Door
from fedfm.federation.enrolment import refusal_in_words
from fedfm.federation.exchange import REMOTE_POLL_SECONDS
from fedfm.federation.journal import Journal

LOOK_SECONDS = 5.0  # between two looks at the door while something else is waited for


class Attendance:
    """Keeps the roll true while a run goes on: late sites enter, lost ones leave and come back."""

    def __init__(self, door: Door, journal: Journal):
        self.door, self.journal = door, journal
        self._seen = set(door.roll.cards)
        self._told: set[str] = set()
        self._looked = 0.0

    def meanwhile(self) -> None:
        """A look, unless the last one was just now."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self.look()

    def look(self) -> None:
        """Take in who has come, and who has gone."""
        self._tell(self.door.look())
        self._looked = time.monotonic()

    def gather(self, number: int, without: tuple[str, ...]) -> dict[str, str]:
        """Site -> domain of those that are there and train, once they are enough for a round.

        Raises TooFewSitesError when they are not after `engine.wait` seconds.
        """
        wait, told = self.door.config.engine.wait, False
        deadline = time.monotonic() + wait
        self.look()
        while short := self._short(there := self._there(without)):
            if time.monotonic() > deadline:
                mend = f"start these sites, and go on: fedfm resume {self.journal.folder.path}"
                raise TooFewSitesError(f"round {number}: {short} after {wait:.0f} s", mend=mend)
            if not told:
                self.journal.tell("warning", message=f"round {number} waits for sites: {short}")
                told = True
            time.sleep(REMOTE_POLL_SECONDS)
            self.look()
        return there

    def _there(self, without: tuple[str, ...]) -> dict[str, str]:
        roll = self.door.roll
        return {s: d for s, d in roll.site_domains().items() if s in roll.nodes and s not in without}

    def _short(self, there: Mapping[str, str]) -> str:
        """What is missing for a round, in words; "" where nothing is."""
        config, domains = self.door.config, list(there.values())
        found = [
            f"{domains.count(domain)} of {settings.minimum_sites} sites of domain {domain}"
            for domain, settings in config.domains.items()
            if domains.count(domain) < settings.minimum_sites
        ]
        if len(there) < config.sampling.minimum_sites:
            found.append(f"{len(there)} of {config.sampling.minimum_sites} sites (sampling.minimum-sites)")
        return ", ".join(found) + " are there" if found else ""

    def _tell(self, change: Change) -> None:
        for site in change.left:
            self._say("site-left", site, "is gone; it takes part again once it is back")
        for site in change.came:
            self._say("site-joined", site, "is back" if site in self._seen else "has joined")
            self._seen.add(site)
        if change.came:
            self.journal.enter(self.door.roll)
        for refusal in change.refused:
            message = refusal_in_words(refusal)
            if message not in self._told:
                self.journal.tell("site-refused", sites=list(refusal.sites), node=str(refusal.node), message=message)
                self._told.add(message)

    def _say(self, kind: str, site: str, what: str) -> None:
        domain = self.door.roll.cards[site].domain
        self.journal.tell(kind, site=site, domain=domain, message=f"site {site} ({domain}) {what}")
