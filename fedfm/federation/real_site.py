"""A site with a site.toml: what it is asked is held against its settings, and so is what it is about to send.

A message is a process of its own here: whatever must be remembered lies on the site's disk.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.config.site import SiteSettings, load_site_settings
from fedfm.domains import load_site
from fedfm.errors import ConfigError, DataError, FedfmError, PolicyError, Problem, RunError
from fedfm.federation import policy
from fedfm.federation.messages import Answer, Order, SiteCard
from fedfm.federation.site_data import forget_data, parse_config, site_card
from fedfm.federation.site_disk import Releases, check_same_data, drop_cache, drop_other_caches, run_folder
from fedfm.federation.site_store import drop_private

FULL = (errno.ENOSPC, errno.EDQUOT)


def real_site(context: Context) -> RealSite | None:
    """The site of a node that was started with `settings` in its node configuration; None in a simulation."""
    settings = settings_of(context)
    return RealSite(settings) if settings else None


def settings_of(context: Context) -> SiteSettings | None:
    """As they are now. Raises PolicyError where they have been spoilt: how is not for the coordinator."""
    path = context.node_config.get("settings")
    try:
        return load_site_settings(str(path)) if path else None
    except ConfigError as error:
        _log(str(error))
        raise PolicyError("the site's own settings cannot be read", mend="at the site: fedfm site check") from None


@dataclass(frozen=True)
class RealSite:
    """`settings` as its site.toml has them."""

    settings: SiteSettings

    def card(self, config: RunConfig) -> SiteCard:
        """What the site tells of itself to a run that it allows: not where its data lie, of warnings the number."""
        settings = self.settings
        _refuse(policy.problems_of_run(settings, config))
        with self._telling_no_data():
            card = site_card(config, settings.domain, settings.site, settings.source)
        self._say_of_labels(card)
        _refuse(policy.problems_of_card(settings, card))
        source = "generated" if settings.source == "generated" else ""
        return replace(card, source=source, warnings=self._without_words(card.warnings))

    def _without_words(self, warnings: Sequence[str]) -> tuple[str, ...]:
        """Warnings name files, folders and labels: they are for the site's own log."""
        for warning in warnings:
            self.say(f"of the data: {warning}")
        count = f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}"
        return (f'site "{self.settings.site}" has {count} about its data: its own log says more',) if warnings else ()

    def _say_of_labels(self, card: SiteCard) -> None:
        """In numbers what the coordinator is told in words only."""
        allow, labels, examples = self.settings.allow, len(card.labels), card.num_examples("train")
        if allow.finds_free_labels(card.task, labels, examples):
            least = f"allow.min-examples-per-label = {allow.min_examples_per_label:g} demands more"
            column = f'they are read from the column "{self.settings.label_column}" where the data are a table'
            self.say(f"{labels} labels for {examples} training examples: {least}; {column}")

    def accept(self, order: Order, received: Arrays) -> Order:
        """The order as this site follows it: on its own data, with its own folder for what it keeps.

        Raises PolicyError, or DataError where the data are not those of the run's first order.
        """
        settings, config = self.settings, parse_config(order.config)
        released = Releases(Path(settings.state)).count()
        _refuse(policy.problems_of_order(settings, config, order, received, released))
        folder = run_folder(Path(settings.state), order.folder)
        drop_other_caches(folder)

        def digest() -> str:
            forget_data()  # what this process may have read of them before
            with self._telling_no_data():
                return load_site(config, settings.domain, settings.site, settings.source).sha256

        check_same_data(folder, settings.source, digest)
        return replace(order, source=settings.source, folder=str(folder))

    def release(self, order: Order, received: Arrays, answer: Answer) -> Answer:
        """The answer, once it may leave and, if it is an update, has been counted. Raises PolicyError.

        With the scores of the test a run is over: what it made of the data goes."""
        if "test" in {order.split, *(split for split, _ in order.beside)}:
            drop_cache(Path(order.folder))
        for part in (answer, *answer.beside.values()):
            for reason in part.left_out.values():
                self.say(reason)
        is_update = bool(answer.arrays) and not order.split
        counted = Releases(Path(self.settings.state)).one_more() if is_update else nullcontext(0)
        try:
            with counted as released:
                _refuse(policy.problems_of_answer(self.settings, order, received, answer, released))
        except FedfmError:
            if is_update:
                drop_private(Path(order.folder) / "checkpoint" / "sites", self.settings.site, order.round)
            raise
        beside = {scoring: self._without_reasons(part) for scoring, part in answer.beside.items()}
        return replace(self._without_reasons(answer), beside=beside)

    def _without_reasons(self, answer: Answer) -> Answer:
        return replace(answer, left_out=dict.fromkeys(answer.left_out, self._unusable()))

    @contextmanager
    def turning_errors_into_sentences(self) -> Iterator[None]:
        """What is refused, or fails, stands in the site's own log too. There only: the words of errors that are no
        sentences of fedfm, which may quote data."""
        try:
            yield
        except OSError as error:
            what = "is full" if error.errno in FULL else f"cannot be used: {error.strerror}"
            self.say(f"the disk {what} ({error.filename or self.settings.state})")
            mend = "at the site: make room, then fedfm site check"
            raise RunError(f'the disk of site "{self.settings.site}" {what}', mend=mend) from None
        except FedfmError as error:
            self.say(str(error))
            raise
        except Exception as error:
            traceback.print_exc()
            what = f'site "{self.settings.site}" failed ({type(error).__name__}); its own log says where'
            raise RunError(what) from None

    def say(self, words: str) -> None:
        """A line for the site's own log."""
        _log(words)

    @contextmanager
    def _telling_no_data(self) -> Iterator[None]:
        """What is wrong with data names files, lines and labels: that is for the site's own log."""
        try:
            yield
        except DataError as error:
            self.say(str(error))
            raise DataError(self._unusable(), mend="at the site: fedfm site check") from None

    def _unusable(self) -> str:
        return f'the data of site "{self.settings.site}" cannot be used; its own log says why'


def _log(words: str) -> None:
    print(f"fedfm: {words}", file=sys.stderr, flush=True)


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise PolicyError(problems)
