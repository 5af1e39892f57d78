"""`fedfm export`: what other programs load from it computes what fedfm computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_helpers import DOMAINS, make_run
from peft import PeftModel, get_peft_model_state_dict
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

from fedfm.commands.export import export
from fedfm.engines import load_config
from fedfm.engines.local import LocalGrid
from fedfm.errors import RunError, UserError
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order
from fedfm.federation.rounds import RoundLoop
from fedfm.models.body import load_body
from fedfm.results.run_folder import RunFolder
from fedfm.training.trained import load_model

TEXTS = ["Profit rose by 5 % in the third quarter.", "Sales fell.", "no change"]


def load_plain(target: Path):
    """The body as any program loads it; nothing may be missing or left over."""
    model, told = AutoModel.from_pretrained(target / "body", output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def load_with_adapter(target: Path, adapter: Path) -> PeftModel:
    """The loading that README.md of the export shows; every tensor of the adapter arrives."""
    model = PeftModel.from_pretrained(load_plain(target), adapter).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert stored.keys() == loaded.keys()
    assert all(np.array_equal(stored[name], loaded[name].numpy()) for name in stored)
    return model


def hidden_states(model, target: Path) -> torch.Tensor:
    """[texts, tokens, features] of TEXTS, padding as zeros; `model` is one that other programs load."""
    batch = AutoTokenizer.from_pretrained(target / "body")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return hidden * batch["attention_mask"].unsqueeze(-1)


def hidden_in_fedfm(run: Path, domain: str = "finance") -> torch.Tensor:
    trained = load_model(run, domain)
    batch = load_body(trained.config).tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = trained.model.body(**inputs).last_hidden_state
    return hidden * batch["attention_mask"].unsqueeze(-1)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance


def moved(run: Path, target: Path) -> float:
    """How far training moved the hidden states of the body that the run began with."""
    body = load_body(load_model(run, "finance").config)
    return float((hidden_in_fedfm(run) - hidden_states(body.model, target)).abs().max())


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("lora")
    run = make_run(root)
    return run, export(run, root / "export")


def test_lora_loads_in_peft_and_computes_the_same(lora):
    run, target = lora
    assert_same(hidden_in_fedfm(run), hidden_states(load_with_adapter(target, target / "adapter"), target), 1e-12)
    assert moved(run, target) > 0.01


def test_float32_too(tiny_run, tmp_path):
    target = export(tiny_run, tmp_path / "export")
    theirs = hidden_states(load_with_adapter(target, target / "adapter"), target)
    assert theirs.dtype == torch.float32
    assert_same(hidden_in_fedfm(tiny_run), theirs, 1e-5)


def test_logits_of_texts_by_hand(lora):
    """Mean of the hidden states over the text's tokens, then x W^T + b; the labels in their order."""
    run, target = lora
    place = target / "domains" / "finance"
    tensors = load_file(place / "tensors.safetensors")
    card = json.loads((place / "labels.json").read_text())
    assert (card["task"], card["max_length"], len(card["labels"])) == ("text-classification", 24, 3)
    assert tensors.keys() == {"head.weight", "head.bias"}
    hidden = hidden_states(load_with_adapter(target, target / "adapter"), target).numpy()
    tokens = (hidden != 0).any(-1).sum(1, keepdims=True)
    logits = hidden.sum(1) / tokens @ tensors["head.weight"].T + tensors["head.bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    trained = load_model(run, "finance")
    assert np.allclose(probabilities, np.stack(trained.probabilities(TEXTS)), rtol=0, atol=1e-9)
    assert [card["labels"][i] for i in probabilities.argmax(1)] == trained.predict(TEXTS)


def test_logits_of_images_by_hand(lora):
    """Stem of stride-2 convolutions, GroupNorm, GELU; 1x1 to the width; positions; LayerNorm; the body's layers."""
    run, target = lora
    place = target / "domains" / "medical"
    card = json.loads((place / "labels.json").read_text())
    assert (card["image_shape"], card["image_adapter"]) == ([3, 32, 32], "stem")
    tensors = {name: torch.from_numpy(v) for name, v in load_file(place / "tensors.safetensors").items()}
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    x = (torch.from_numpy(images.transpose(0, 3, 1, 2)).double() / 255 - 0.5) * 4
    stages = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("adapter.embed.")})
    for stage in stages:
        weight, bias = (tensors[f"adapter.embed.{stage}.{part}"] for part in ("weight", "bias"))
        if weight.dim() == 1:
            x = torch.nn.functional.gelu(torch.nn.functional.group_norm(x, 8, weight, bias))
        else:
            kernel = weight.shape[-1]
            x = torch.nn.functional.conv2d(x, weight, bias, stride=2 if kernel == 3 else 1, padding=kernel // 2)
    x = x.permute(0, 2, 3, 1)
    rows, columns = tensors["adapter.positions.rows"], tensors["adapter.positions.columns"]
    x = (x + rows[:, None] + columns[None]).flatten(1, 2)
    norm = (tensors[f"adapter.norm.{part}"] for part in ("weight", "bias"))
    body = load_with_adapter(target, target / "adapter")
    tokens = torch.nn.functional.layer_norm(x, x.shape[-1:], *norm, eps=body.config.layer_norm_eps)
    with torch.no_grad():
        hidden = body.base_model.model.encoder(tokens).last_hidden_state
    logits = hidden.mean(1) @ tensors["head.weight"].T + tensors["head.bias"]
    ours = np.stack(load_model(run, "medical").probabilities(images))
    assert np.allclose(logits.softmax(-1).numpy(), ours, rtol=0, atol=1e-9)


def test_a_lora_of_each_domain_has_a_folder_of_its_own(tmp_path):
    run = make_run(tmp_path, 'sharing."*lora_B*"=domain')
    target = export(run, tmp_path / "export")
    assert not (target / "adapter").exists()
    finance, medical = (target / "domains" / domain / "adapter" for domain in ("finance", "medical"))
    assert_same(hidden_in_fedfm(run), hidden_states(load_with_adapter(target, finance), target), 1e-12)
    assert_same(hidden_in_fedfm(run, "medical"), hidden_states(load_with_adapter(target, medical), target), 1e-12)
    assert (hidden_in_fedfm(run) - hidden_in_fedfm(run, "medical")).abs().max() > 1e-3
    assert '"domains/medical/adapter"' in (target / "README.md").read_text()


@pytest.mark.parametrize("overrides", [("body.tuning=layernorm",), ("body.tuning=full",), ("body.layers=1",)])
def test_the_body_itself_holds_what_all_domains_share(overrides, tmp_path):
    run = make_run(tmp_path, *overrides)
    target = export(run, tmp_path / "export")
    model = load_plain(target)
    if "body.layers=1" in overrides:
        assert model.config.num_hidden_layers == 1
        model = load_with_adapter(target, target / "adapter")
    else:
        assert not (target / "adapter").exists()
        assert "PeftModel" not in (target / "README.md").read_text()
    assert_same(hidden_in_fedfm(run), hidden_states(model, target), 1e-12)
    assert moved(run, target) > 0.01
    assert load_file(target / "domains" / "finance" / "tensors.safetensors").keys() == {"head.weight", "head.bias"}


def test_only_a_head_was_trained(tmp_path):
    run = make_run(tmp_path, "body.tuning=head")
    target = export(run, tmp_path / "export")
    assert_same(hidden_in_fedfm(run), hidden_states(load_plain(target), target), 1e-12)
    assert moved(run, target) == 0
    assert not (target / "adapter").exists()


def test_norms_of_each_domain_lie_with_the_domain(tmp_path):
    """The body keeps the values it came with; a domain's own ones are loaded over it, as the README says."""
    run = make_run(tmp_path, "body.tuning=layernorm", 'sharing."body.*"=domain')
    target = export(run, tmp_path / "export")
    plain = load_plain(target)
    assert_same(hidden_states(load_body(load_config(run / "config.toml")).model, target), hidden_states(plain, target))
    for domain in ("medical", "finance"):
        tensors = load_file(target / "domains" / domain / "tensors.safetensors")
        own = {name[5:]: torch.from_numpy(v) for name, v in tensors.items() if name.startswith("body.")}
        assert not plain.load_state_dict(own, strict=False).unexpected_keys
        assert_same(hidden_in_fedfm(run, domain), hidden_states(plain, target), 1e-12)
    assert "model.load_state_dict(own, strict=False)" in (target / "README.md").read_text()


def test_a_private_head_is_exported_for_the_site_that_is_named(tmp_path):
    run = make_run(tmp_path, 'sharing."head.*"=private', "domains.finance.sites=2")
    with pytest.raises(UserError, match="part of the model of domain medical is private to its sites"):
        export(run, tmp_path / "none")
    with pytest.raises(UserError, match=r'the run has no site "finance1"\. did you mean "finance-1"\?'):
        export(run, tmp_path / "none", ["medical-1", "finance1"])
    with pytest.raises(UserError, match="finance-1 and finance-2 are both sites of domain finance"):
        export(run, tmp_path / "none", ["medical-1", "finance-1", "finance-2"])
    assert not (tmp_path / "none").exists()
    heads = {}
    for site in ("finance-1", "finance-2"):
        target = export(run, tmp_path / site, ["medical-1", site])
        heads[site] = load_file(target / "domains" / "finance" / "tensors.safetensors")["head.weight"]
        assert np.array_equal(heads[site], load_model(run, "finance", site).weights["head.weight"])
    assert not np.array_equal(heads["finance-1"], heads["finance-2"])


def test_the_card_tells_scores_origin_and_loading(lora):
    run, target = lora
    card = (target / "README.md").read_text(encoding="utf-8")
    final = json.loads((run / "run.json").read_text())["final"]
    assert f"auc {final['medical']['auc']:.3f}" in card
    assert f"macro_f1 {final['finance']['macro_f1']:.3f}" in card
    assert "Generated data: finance, medical; these scores say nothing about real data." in card
    assert 'PeftModel.from_pretrained(model, "adapter")' in card


def test_no_path_of_this_machine_leaves_with_an_export(tmp_path):
    """Neither the folder of the body, nor that of the data, nor that of the run; a second export is equal."""
    first = export(make_run(tmp_path / "secret-a"), tmp_path / "secret-b")
    (tmp_path / "secret-c").mkdir()
    for split in ("train", "val", "test"):
        rows = "".join(f"{label},{label} news {i}{split}\n" for i in range(6) for label in ("up", "down"))
        (tmp_path / "secret-c" / f"{split}.csv").write_text("label,text\n" + rows, encoding="utf-8")
    finance = {"task": "text-classification", "source": str(tmp_path / "secret-c"), "sites": 1}
    run = make_run(tmp_path / "secret-d", f"body.name={first / 'body'}", domains={"finance": finance})
    target = export(run, tmp_path / "secret-e")
    again = export(run, tmp_path / "f")
    files = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        content = (target / file).read_bytes()
        assert content == (again / file).read_bytes(), file
        assert not re.search(rb"secret-[abde]|/tmp|" + str(tmp_path).encode(), content), file
    assert "| finance | text-classification | secret-c | 2 |" in (target / "README.md").read_text()


def test_the_destination_is_new_or_empty(lora, tmp_path):
    run, target = lora
    for place, what in [(target, "the destination is not empty"), (target / "README.md", "the destination is a file")]:
        with pytest.raises(UserError, match=what):
            export(run, place)
    (tmp_path / "empty").mkdir()
    assert export(run, tmp_path / "empty") == tmp_path / "empty"
    assert (export(run, tmp_path / "deep" / "er") / "README.md").is_file()
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path, tmp_path / "g")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("name", ["dual-lora", "flora"])
def test_what_lies_beside_the_shared_adapter_is_exported_too(tmp_path, name):
    """A domain's own pair goes into its adapter, merged products into the body: peft computes the same, 1e-12."""
    run = make_run(tmp_path, f"strategy.name={name}")
    target = export(run, tmp_path / "export")
    own = target / "domains" / "finance" / "adapter"
    theirs = hidden_states(load_with_adapter(target, own if own.exists() else target / "adapter"), target)
    assert own.exists() == (name == "dual-lora")
    assert_same(hidden_in_fedfm(run), theirs, 1e-12)


def test_a_site_that_is_unknown_makes_no_folder(tiny_run, tmp_path):
    with pytest.raises(UserError, match='the run has no site "nope"'):
        export(tiny_run, tmp_path / "export", ["nope"])
    assert not (tmp_path / "export").exists()


def test_a_model_that_was_not_tested_predicts_and_is_exported_after_its_run_has_gone_on(tmp_path):
    """All sites fail when they are to score the test; the model, private heads included, is there all the same."""

    def no_test(message, context):
        if message.metadata.message_type == "evaluate" and read_order(message)[0].split == "test":
            raise OSError("disk gone")
        return app(message, context)

    finance = {**DOMAINS["finance"], "sites": 2}
    config = load_config({"rounds": 1, "domains": {"finance": finance}}, 'sharing."head.*"=private')
    folder = RunFolder.create(config, tmp_path)
    with pytest.raises(RunError, match="no site has scored its test"):
        RoundLoop(LocalGrid(no_test), config, folder).run()
    assert folder.info["status"] == "running"  # whoever began the run writes that it has failed
    assert {"rounds", "best_round", "final_round", "final_weights_sha256"} <= folder.info.keys()
    before = load_model(folder.path, "finance", "finance-2").weights
    with pytest.raises(UserError) as caught:
        export(folder.path, tmp_path / "export", ["finance-2"])
    assert str(caught.value) == (
        f"{folder.path}: the test of this run has not been scored, and the model card of an export tells the scores\n"
        f"    mend: fedfm resume {folder.path}"
    )
    assert not (tmp_path / "export").exists()

    RoundLoop(LocalGrid(app), config, folder).run()
    assert folder.info["status"] == "finished"
    export(folder.path, tmp_path / "export", ["finance-2"])
    after = load_model(folder.path, "finance", "finance-2").weights
    assert all(np.array_equal(before[name], after[name]) for name in after)
