"""A site's name is bound to its key where the configuration has it: a registered key alone may bear any name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from attendance_helpers import NAMES, Coming, deployed, messages, play
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from federation_helpers import TEXTS, tiny
from flwr.app import Message

from fedfm.config.changes import refuse_other_config
from fedfm.errors import ConfigError, DataError, EngineError
from fedfm.federation.keys import fingerprint
from fedfm.federation.messages import write_problem

FORM = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
PUBLIC = {node: ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*FORM) for node in (1, 2, 3)}
KEYS = {node: fingerprint(public) for node, public in PUBLIC.items()}
DATA = {**TEXTS, "max-examples": 18, "minimum-sites": 1}


def bound(folder, second: str, first: str = KEYS[1]):
    """Two sites with keys."""
    tables = [{"name": "finance-1", "key": first}, {"name": "finance-2", "key": second}]
    return deployed(tiny(folder, finance={**DATA, "site": tables}))


def coming(names: dict[int, str], **more) -> Coming:
    """Nodes with keys, as a SuperLink knows them."""
    found = Coming(names, set(names), **more)
    found.grid.get_nodes = lambda: [SimpleNamespace(node_id=node, public_key=PUBLIC[node]) for node in names]
    return found


def test_who_has_the_keys_comes_in(tmp_path):
    done = play(bound(tmp_path, KEYS[2]), coming({1: "finance-1", 2: "finance-2"}))
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]
    assert not [text for text in messages(done, "warning") if "key" in text]


def test_another_registered_key_does_not_come_under_a_sites_name(tmp_path):
    """It answers first, and the site itself comes in all the same."""
    names = {1: "finance-1", 2: "finance-2", 3: "finance-2"}
    done = play(bound(tmp_path, KEYS[3]), coming(names))
    (said,) = {text.partition("\n")[0] for text in messages(done, "warning") if "key" in text}
    what = f'a node says that it is site "finance-2", and its key is {KEYS[2]}; the configuration has {KEYS[3]}'
    assert said == f"node 2 is left out: {what}"
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]


def test_a_refusal_in_the_name_of_another_site_is_none_of_it(tmp_path):
    """Without the key it is of a node, and ends no run; with it the site's own, which the run cannot do without."""

    def refuse(message: Message, reply: Message) -> Message:
        is_query = message.metadata.message_type == "query" and message.metadata.dst_node_id == 2
        return write_problem(DataError("no"), message, ["finance-1"]) if is_query else reply

    done = play(bound(tmp_path, KEYS[2]), coming({1: "finance-1", 2: "finance-2"}, spoil=refuse))
    assert done.folder.rounds["sites_used"].tolist() == [0, 1]
    assert "node 2 is left out: no" in messages(done, "warning")


def test_without_keys_nobody_can_show_one(tmp_path):
    """As at a SuperLink that asks for none; and a configuration without keys asks for none."""
    with pytest.raises(EngineError, match="no node holds finance-1, finance-2"):
        play(bound(tmp_path, KEYS[2]), Coming({1: "finance-1", 2: "finance-2"}, {1, 2}))
    done = play(deployed(tiny(tmp_path, finance={**DATA, "sites": 3})), Coming(NAMES, {1, 2, 3}))
    assert done.folder.rounds["sites_used"].tolist() == [0, 3]


@pytest.mark.parametrize("key", ["SHA256:short", "MD5:aa:bb", KEYS[1] + "="], ids=["short", "md5", "padded"])
def test_what_is_no_fingerprint_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=r"site\[2\].key|site.*key"):
        bound(tmp_path, key)


def test_a_run_may_go_on_with_a_new_key(tmp_path):
    refuse_other_config(bound(tmp_path, KEYS[3]), bound(tmp_path, KEYS[2]).to_dict())
