"""The start of a run: who is there, what they hold, and what they agree on."""

from __future__ import annotations

import pytest
from enrolment_helpers import EXAMPLES, call, own, write_images, write_texts, write_words
from federation_helpers import TEXTS, WORDS, tiny, train_federation, with_names
from flwr.app import ConfigRecord, Message, RecordDict

from fedfm.engines.local import LocalGrid
from fedfm.errors import ConfigError, DataError, EngineError, RunError
from fedfm.federation.client_app import app
from fedfm.federation.door import Door, Roll
from fedfm.federation.enrolment import enrol

# ---- who is there --------------------------------------------------------------------------------------------------


def test_the_roll_knows_every_site_its_node_and_its_domain(tmp_path):
    config = tiny(tmp_path)
    roll = call(config)
    assert roll.nodes == {site: node for node, site in enumerate(config.sites(), 1)}
    assert roll.site_domains() == config.sites()
    assert list(roll.site_domains()) == sorted(config.sites())
    assert roll.cards["medical-1"].image_shape == roll.domains["medical"].image_shape is not None
    assert roll.domains["ner"].image_shape is None
    assert roll.cards["ner-1"].source == "generated"
    assert len(roll.cards["ner-1"].sha256) == 64
    assert roll.cards["finance-1"].label_counts["train"].keys() == set(roll.domains["finance"].labels)


def test_one_node_may_hold_several_sites_and_some_none(tmp_path):
    config = tiny(tmp_path)
    two = call(config, nodes=2)
    assert sorted(two.nodes) == sorted(config.sites())
    assert set(two.nodes.values()) == {1, 2}
    assert sorted(call(config, nodes=9).nodes) == sorted(config.sites())


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_number_of_nodes_does_not_change_the_result(tmp_path, nodes):
    from fedfm.federation.rounds import RoundLoop
    from fedfm.results.run_folder import RunFolder

    config = tiny(tmp_path, finance=TEXTS, ner=WORDS)
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(app, nodes), config, folder).run()
    assert folder.info["final_weights_sha256"] == train_federation(config).sha256


def test_missing_sites_are_named_after_the_wait(tmp_path):
    config = tiny(tmp_path)
    with pytest.raises(EngineError) as caught:
        call(config, with_names({1: "finance-1"}), nodes=1)
    assert str(caught.value) == (
        "no node holds finance-2, medical-1, medical-2, ner-1, ner-2 after 0 s\n"
        "    mend: start these sites, or take them out of the configuration"
    )
    with pytest.raises(EngineError, match="no node holds finance-1, finance-2"):
        call(config, nodes=0)


def test_a_site_that_comes_later_is_waited_for(tmp_path):
    """The second node joins at the third look; nobody is asked twice."""
    config = tiny(tmp_path, finance=TEXTS)
    asked = []

    def counting(message, context):
        asked.append(context.node_id)
        return app(message, context)

    class Growing(LocalGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return [1] if self.looks < 3 else [1, 2]

    roll = enrol(Door(Growing(counting, 2), config, Roll(), timeout=20), wait=20)
    assert sorted(roll.nodes) == ["finance-1", "finance-2"]
    assert asked == [1, 2]


def test_two_nodes_that_claim_one_site_are_refused(tmp_path):
    config = tiny(tmp_path, finance=TEXTS)
    with pytest.raises(EngineError) as caught:
        call(config, with_names({1: "finance-1", 2: "finance-1"}))
    assert str(caught.value) == 'two nodes say that they are site "finance-1"\n    mend: stop one of them'


def test_a_node_with_an_unknown_site_name_is_refused(tmp_path):
    config = tiny(tmp_path, finance=TEXTS)
    with pytest.raises(ConfigError) as caught:
        call(config, with_names({1: "finance-1", 2: "financ-2"}))
    assert 'the configuration has no site "financ-2"; it has finance-1, finance-2' in str(caught.value)


def test_a_card_of_a_site_that_the_configuration_does_not_have_is_refused(tmp_path):
    """A node that runs another version, or means ill: its card must not enter the roll."""

    def pretending(message: Message, context) -> Message:
        reply = app(message, context)
        text = str(reply.content["cards"]["json"]).replace("finance-2", "stranger")
        return Message(RecordDict({"cards": ConfigRecord({"json": text})}), reply_to=message)

    with pytest.raises(EngineError) as caught:
        call(tiny(tmp_path, finance=TEXTS), pretending)
    said = 'a node says that it is site "stranger" of domain finance; the configuration has none such'
    assert said in str(caught.value)


def test_a_node_that_cannot_answer_ends_the_enrolment_with_its_reason(tmp_path):
    def broken(message, context):
        raise OSError("no disk")

    with pytest.raises(RunError, match="OSError: no disk"):
        call(tiny(tmp_path, finance=TEXTS), broken)


def test_bad_data_of_all_sites_are_told_at_once(tmp_path):
    """Two sites with unusable sources: one error, both files, each once."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("text,sentiment\nx,y\n", encoding="utf-8")
    sources = {name: str(tmp_path / f"{name}.csv") for name in ("a", "b")}
    with pytest.raises(DataError) as caught:
        call(tiny(tmp_path, finance=own("text-classification", **sources)))
    assert [message.count(".csv") for message in str(caught.value).split("\n") if "no column" in message] == [1, 1]
    assert caught.value.exit_code == 2


# ---- what they agree on --------------------------------------------------------------------------------------------


def test_sites_with_other_labels_agree_on_the_union_and_train(tmp_path):
    """bank-a knows two classes, bank-b two others of three; the tags of two NER sites overlap in none."""
    config = tiny(
        tmp_path / "runs",
        finance=own(
            "text-classification",
            **{"bank-a": write_texts(tmp_path / "a.csv", ["negative", "positive"]),
               "bank-b": write_texts(tmp_path / "b.csv", ["neutral", "positive"])},
        ),
        ner=own(
            "token-classification",
            **{"desk-a": write_words(tmp_path / "a", ["PER"]), "desk-b": write_words(tmp_path / "b", ["ORG", "LOC"])},
        ),
    )  # fmt: skip
    roll = call(config)
    assert roll.cards["bank-a"].labels == ("negative", "positive")
    assert roll.domains["finance"].labels == ("negative", "neutral", "positive")
    assert roll.domains["ner"].labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    done = train_federation(config)
    assert done.weights["finance/head.weight"].shape[0] == 3
    assert done.weights["ner/head.weight"].shape[0] == 7
    assert done.folder.rounds["sites_used"].tolist() == [0, 4]
    report = (done.folder.path / "reports" / "finance.txt").read_text(encoding="utf-8")
    assert all(label in report for label in EXAMPLES)


def test_the_labels_of_a_site_are_renumbered_to_the_union(tmp_path):
    """positive is 1 of 2 at bank-a and 2 of 3 in the federation: its training labels are 0 and 2."""
    from fedfm.domains import load_site
    from fedfm.federation.site_data import _label_map

    config = tiny(
        tmp_path / "runs",
        finance=own("text-classification", a=write_texts(tmp_path / "a.csv", ["negative", "positive"]),
                    b=write_texts(tmp_path / "b.csv", ["neutral", "positive"])),
    )  # fmt: skip
    labels = call(config).domains["finance"].labels
    data = load_site(config, "finance", "a")
    numbers = data.train.relabel(_label_map(data, labels)).labels
    assert set(numbers.tolist()) == {0, 2}
    assert [labels[n] for n in numbers] == [data.labels[n] for n in data.train.labels]


def test_images_of_unlike_shapes_are_refused_and_image_size_mends_it(tmp_path):
    sources = {"a": write_images(tmp_path / "a.npz", 12, 1), "b": write_images(tmp_path / "b.npz", 16, 1)}
    config = tiny(tmp_path / "runs", medical=own("image-classification", **sources))
    with pytest.raises(DataError) as caught:
        call(config)
    assert str(caught.value) == (
        "domain medical: the sites' images differ in (channels, height, width): a: (1, 12, 12), b: (1, 16, 16)\n"
        "    mend: set domains.medical.image-size to one size; grey and colour cannot mix"
    )
    mended = config.replace("domains.medical.image-size=12")
    assert call(mended).domains["medical"].image_shape == (1, 12, 12)
    assert train_federation(mended).folder.info["status"] == "finished"


def test_grey_and_colour_do_not_mix(tmp_path):
    sources = {"a": write_images(tmp_path / "a.npz", 12, 1), "b": write_images(tmp_path / "b.npz", 12, 3)}
    with pytest.raises(DataError, match="grey and colour cannot mix"):
        call(tiny(tmp_path / "runs", medical=own("image-classification", **sources)))
