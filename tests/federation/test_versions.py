"""Sites of another fedfm than the coordinator's: refused with both versions, by the site first, and told at both."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from attendance_helpers import Coming, deployed, messages, play
from enrolment_helpers import call
from federation_helpers import TEXTS, tiny
from flwr.app import ConfigRecord, Message, RecordDict
from site_helpers import real_sites

from fedfm import __version__
from fedfm.errors import UserError
from fedfm.federation.client_app import app

SITES = {"finance-1": "finance", "finance-2": "finance"}
MEND = "\n    mend: install the same fedfm on both sides"


def telling(version: str | None):
    """What turns a query into that of a coordinator of another version; None: of one that tells none."""

    def change(site: str, message: Message) -> None:
        record = message.content["order"]
        if version is None:
            del record["fedfm"]
        else:
            record["fedfm"] = version
        record["config"] = json.dumps({"a-key": "of another version"})

    return change


@pytest.mark.parametrize(("version", "told"), [("9.8.7", "fedfm 9.8.7"), (None, "a fedfm of unknown version")])
def test_a_real_site_refuses_another_version_before_it_reads_the_configuration(tmp_path, capfd, version, told):
    config = tiny(tmp_path / "runs", finance=TEXTS)
    with pytest.raises(UserError) as caught:
        call(config, real_sites(tmp_path, SITES, before=telling(version)))
    said = [f'site "{site}" has fedfm {__version__}, the coordinator {told}{MEND}' for site in SITES]
    assert str(caught.value) == "\n".join(said)
    log = capfd.readouterr().err
    assert all(f"fedfm: {sentence}" in log for sentence in said)


def test_a_configuration_that_a_site_cannot_read_stands_in_its_own_log_too(tmp_path, capfd):
    def spoil(site: str, message: Message) -> None:
        message.content["order"]["config"] = json.dumps({"rouds": 3})

    with pytest.raises(UserError, match="unknown key"):
        call(tiny(tmp_path / "runs", finance=TEXTS), real_sites(tmp_path, SITES, before=spoil))
    assert "rouds" in capfd.readouterr().err


@dataclass
class Older:
    """Changes what `site` answers to its query; whatever else it says it leaves."""

    site: str
    version: str | None

    def __call__(self, message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "query" or "cards" not in reply.content:
            return reply
        rows = json.loads(str(reply.content["cards"]["json"]))
        for row in rows:
            if row["site"] == self.site:
                row["a-field"] = "of another version"
                row["fedfm"] = self.version
                if self.version is None:
                    del row["fedfm"], row["a-field"]
        return Message(RecordDict({"cards": ConfigRecord({"json": json.dumps(rows)})}), reply_to=message)


@pytest.mark.parametrize(("version", "told"), [("9.8.7", "fedfm 9.8.7"), (None, "a fedfm of unknown version")])
def test_the_coordinator_refuses_a_site_of_another_version_that_did_not_look(tmp_path, version, told):
    config = deployed(tiny(tmp_path, finance={**TEXTS, "minimum-sites": 1}))
    done = play(config, Coming({1: "finance-1", 2: "finance-2"}, {1, 2}, spoil=Older("finance-2", version)))
    (said,) = (text for text in messages(done, "warning") if "left out" in text)
    sentence = f'site "finance-2" has {told}, the coordinator fedfm {__version__}{MEND}'
    assert said == f"site finance-2 is left out: {sentence}"
    assert done.folder.rounds["sites_used"].tolist() == [0, 1]


def test_the_refusal_of_a_site_that_tells_no_version_begins_with_that(tmp_path):
    """What an older site does not know is an unknown key to it."""

    def older(message: Message, context) -> Message:
        problems = json.dumps([{"what": "unknown key", "where": "engine.evaluate-timeout", "mend": ""}])
        fields = {"class": "ConfigError", "problems": problems, "sites": ["finance-1"]}
        return Message(RecordDict({"problem": ConfigRecord(fields)}), reply_to=message)

    with pytest.raises(UserError) as caught:
        call(tiny(tmp_path, finance=TEXTS), older, nodes=1)
    sentence = f'site "finance-1" has a fedfm of unknown version, the coordinator fedfm {__version__}{MEND}'
    assert str(caught.value) == f"{sentence}\nengine.evaluate-timeout: unknown key"


def test_sites_of_the_same_version_come_in(tmp_path):
    config = tiny(tmp_path, finance=TEXTS)
    roll = call(config, app)
    assert {card.fedfm for card in roll.cards.values()} == {__version__}
