"""What a run says of itself while it goes: rows and events to its folder, events to who listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfm.arrays import Arrays, sha256
from fedfm.config import BodyConfig, RunConfig
from fedfm.federation.auditing import UNRECORDED, CoordinatorRecord
from fedfm.federation.door import Roll
from fedfm.federation.messages import SiteCard
from fedfm.results.run_folder import Listen, RunFolder
from fedfm.training.metrics import PRIMARY

MOST_WAITING = 256  # rows that are held before they are written together
TRUNCATED_SHARE = 0.05  # of a site's texts that are cut at the maximum length: more than this is worth a warning


class Journal:
    """Writes to one run folder; `listen` hears every event that the folder gets.

    `audit`: where messages are recorded one by one, as they are across machines; what left each site then stands there
    and in no sent.csv.
    """

    def __init__(self, folder: RunFolder, listen: Listen, audit: CoordinatorRecord = UNRECORDED):
        self.folder, self.listen, self.audit = folder, listen, audit
        self._warned: set[str] = set()
        self._sent: list[dict[str, Any]] = []
        self._scores: list[dict[str, Any]] = []

    def flush(self) -> None:
        """Write the rows that wait. A round's are on disk before its checkpoint is; those of a round that a kill cuts
        short would be taken out again by whoever goes on with the run."""
        if self._sent:
            self.folder.add_sent(self._sent)
        if self._scores:
            self.folder.add_metrics(self._scores)
        self._sent, self._scores = [], []

    def tell(self, kind: str, **fields: Any) -> None:
        if self.audit.head and kind in ("round-finished", "run-finished"):
            self.folder.update(audit_sha256=self.audit.head)  # who has this sees if the record's end is cut off
        self.flush()
        self.listen(self.folder.event(kind, **fields))

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self.tell("warning", message=message)

    def tell_many(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As `tell` for each of `rows`."""
        for event in self.folder.events(kind, rows):
            self.listen(event)

    def scores(
        self, round: int, scope: str, rows: Sequence[tuple[str, str, str, Mapping[str, float], int]],
        model: str = "global",
    ) -> None:  # fmt: skip
        """Rows of metrics.csv, one for each metric of each (name, domain, split, values, examples), in one write.

        `model`: "global", or "personal" for scores of what each site has made its own; they are never mixed.
        """
        self._scores += (
            {"round": round, "scope": scope, "name": name, "domain": domain, "split": split}
            | {"metric": metric, "value": value, "num_examples": examples, "model": model}
            for name, domain, split, values, examples in rows
            for metric, value in values.items()
        )

    def sent(
        self, round: int, phase: str, sites: Sequence[str], domain: str, arrays: Arrays, num_bytes: int
    ) -> None:  # fmt: skip
        """Rows of sent.csv: what a message from these sites holds; `together` says how many of them share it."""
        if self.audit.audit is not None:
            return
        what = "update" if phase == "train" else f"tally of {phase}"
        row = {"round": round, "domain": domain, "what": what, "together": len(sites), "tensors": len(arrays)}
        digest = sha256(arrays) if arrays else ""
        self._sent += ({**row, "site": site, "bytes": num_bytes, "sha256": digest} for site in sites)
        if len(self._sent) + len(self._scores) > MOST_WAITING:
            self.flush()

    def announce(
        self, config: RunConfig, roll: Roll, bytes_per_site: int, resumed_from: int | None, shown: str
    ) -> None:
        """The first event of a run, what run.json says of its sites, and what the sites warn of."""
        primary = {domain: PRIMARY[card.task] for domain, card in roll.domains.items()}
        generated = sorted({card.domain for card in roll.cards.values() if card.source == "generated"})
        self.folder.update(status="running", primary=primary, generated=generated, reason=None, error=None)
        self.tell(
            "run-started", run=self.folder.path.name, strategy=config.strategy.name, engine=config.engine.name,
            seed=config.seed, rounds=config.rounds, body=in_words(config.body), sites=roll.site_domains(),
            primary=primary, bytes_per_site={"down": bytes_per_site, "up": bytes_per_site}, generated=generated,
            resumed_from=resumed_from, shown=shown,
        )  # fmt: skip
        self.enter(roll)

    def enter(self, roll: Roll) -> None:
        """What run.json says of the sites that are or were there, and what they warn of, each once."""
        cards = {name: roll.cards[name] for name in sorted(roll.cards)}
        sites = self.folder.info.get("sites", {}) | {
            name: {"domain": c.domain, "source": c.source, "sha256": c.sha256, "label_counts": c.label_counts}
            for name, c in cards.items()
        }
        self.folder.update(sites=dict(sorted(sites.items())))
        for (domain, sentence), names in _warnings(cards).items():
            of_all = len(names) > 1 and len(names) == sum(card.domain == domain for card in cards.values())
            who = domain if of_all else f"{domain}, {', '.join(names)}"
            self.warn_once(f"{who}: {sentence}")

    def warn_truncated(self, site: str, domain: str, share: float, config: RunConfig) -> None:
        if share > TRUNCATED_SHARE:
            max_length = config.local_for(domain).max_length
            self.warn_once(
                f"{domain}: {share:.0%} of the texts of site {site} are longer than max-length = {max_length} and are "
                f"cut; domains.{domain}.local.max-length=... mends it"
            )


def _warnings(cards: Mapping[str, SiteCard]) -> dict[tuple[str, str], list[str]]:
    """(domain, sentence) -> sites that say so: the sites of a cut source all say the same of it."""
    said: dict[tuple[str, str], list[str]] = {}
    for name, card in cards.items():
        for sentence in card.warnings:
            said.setdefault((card.domain, sentence), []).append(name)
    return said


def in_words(body: BodyConfig) -> str:
    """A body for the header of a screen, such as `minilm, 3 layers, LoRA r=8`."""
    kept = f"{body.layers} layers" if body.layers else "all layers"
    if body.weights == "none":
        kept = "no layers (control)"
    redrawn = ", random weights (control)" if body.weights == "random" else ""
    tuning = {"lora": f"LoRA r={body.lora_rank}", "layernorm": "LayerNorm", "head": "head only", "full": "full"}
    return f"{body.name}, {kept}{redrawn}, {tuning[body.tuning]}"
