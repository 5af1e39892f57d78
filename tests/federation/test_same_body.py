"""Sites whose frozen body has other weights than the coordinator's: their changes are of another model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_helpers import TEXTS, NodeApp, Recorder, tiny, train_federation
from site_helpers import real_sites
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedfm.errors import ModelError
from fedfm.federation.client_app import app
from fedfm.federation.messages import Order
from fedfm.federation.workbench import forget_workbenches, workbench
from fedfm.models.body import TINY_TOKENIZER, load_body

SITES = {"finance-1": "finance", "finance-2": "finance"}


def write_body(folder: Path, seed: int) -> Path:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=2560, **size)).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER).save_pretrained(folder)
    return folder


def with_other_body(inner: NodeApp, node: int, body: Path, other: Path) -> NodeApp:
    """To one node, and to no other, the files at the path of the body are those of `other`."""
    kept = shutil.copytree(body, body.with_name("kept"))

    def node_app(message, context):
        if message.metadata.dst_node_id != node or message.metadata.message_type == "query":
            return inner(message, context)
        try:
            shutil.copytree(other, body, dirs_exist_ok=True)
            forget_workbenches()  # a real site plays each message in a process of its own
            return inner(message, context)
        finally:
            shutil.copytree(kept, body, dirs_exist_ok=True)
            forget_workbenches()

    return node_app


def test_a_site_with_another_body_is_left_out_and_both_ends_are_told(tmp_path, capfd):
    body, other = write_body(tmp_path / "body", 1), write_body(tmp_path / "other", 2)
    config = tiny(tmp_path / "runs", f"body.name={body}", finance=TEXTS)
    ours, theirs = load_body(config).sha256, load_body(config.replace(f"body.name={other}")).sha256
    assert ours != theirs
    done = train_federation(config, with_other_body(real_sites(tmp_path, SITES), 2, body, other))
    ((site, reason),) = [(event["site"], event["reason"]) for event in done.events("update-left-out")]
    assert site == "finance-2"
    assert reason == (
        f'body.name: the body "{body}" of site "finance-2" has other weights than the coordinator\'s '
        f"(sha256 {theirs[:12]}..., the coordinator's {ours[:12]}...)\n"
        "    mend: give the site the coordinator's files of the body"
    )
    assert reason in capfd.readouterr().err
    assert done.folder.rounds["sites_used"].tolist() == [0, 1]


def test_the_same_files_elsewhere_are_the_same_body(tmp_path):
    body = write_body(tmp_path / "body", 1)
    config = tiny(tmp_path / "runs", f"body.name={body}", finance=TEXTS)
    copy = Path(shutil.copytree(body, tmp_path / "copy"))
    done = train_federation(config, with_other_body(real_sites(tmp_path, SITES), 2, body, copy))
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]
    assert done.sha256 == train_federation(config).sha256


def test_every_order_names_the_body_of_the_coordinator(tmp_path):
    recorder = Recorder(app)
    done = train_federation(tiny(tmp_path, finance=TEXTS), recorder)
    assert {order.body for _, order, _, _ in recorder.seen} == {done.folder.info["body_sha256"]}


@pytest.fixture
def order(tmp_path) -> Order:
    recorder = Recorder(app)
    train_federation(tiny(tmp_path, finance=TEXTS), recorder)
    return recorder.seen[0][1]


def test_a_body_that_comes_with_fedfm_is_not_compared(order):
    """It is the same everywhere, or drawn, or checked when it is read."""
    assert workbench(replace(order, body="0" * 64)) is workbench(order)


def test_a_refused_body_stays_refused(order, tmp_path):
    """The workbench is kept in the process, and the comparison is not a part of it."""
    body = write_body(tmp_path / "body", 1)
    text = order.config.replace('"name": "tiny"', f'"name": "{body}"')
    assert text != order.config
    for _ in range(2):
        with pytest.raises(ModelError, match='of site "finance-1" has'):
            workbench(replace(order, config=text))
    right = load_body(tiny(tmp_path, f"body.name={body}", finance=TEXTS)).sha256
    assert workbench(replace(order, config=text, body=right)).body.sha256 == right
