"""What is shipped, and that the Flower app of the repository is the quickstart."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedfm import __version__
from fedfm.config import load_config
from fedfm.federation.server_app import OWN_KEYS, read_run_config

ROOT = Path(__file__).parents[1]
QUICKSTART = Path("experiments") / "quickstart.toml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def flattened(table: dict, prefix: str = "") -> dict:
    """Nested tables as Flower hands them to an app: `{"a.b": value}`."""
    flat = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        flat |= flattened(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def test_flower_runs_the_quickstart_by_default() -> None:
    flat = flattened(PROJECT["tool"]["flwr"]["app"]["config"])
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())  # Flower refuses lists
    assert {flat[key] for key in OWN_KEYS} == {""}
    assert read_run_config(flat) == load_config(ROOT / QUICKSTART)


def test_flower_knows_every_key_of_the_configuration() -> None:
    """`flwr run --run-config` overrides only keys that stand in pyproject.toml."""
    flat = flattened(PROJECT["tool"]["flwr"]["app"]["config"])
    keys = flattened(load_config(ROOT / QUICKSTART).to_dict())
    assert {key for key, value in keys.items() if not isinstance(value, list)} == flat.keys() - set(OWN_KEYS)


def test_the_flower_app_carries_no_code() -> None:
    app = PROJECT["tool"]["flwr"]["app"]
    assert app["fab-include"] == ["LICENSE"]
    for component in app["components"].values():
        module, _, name = component.partition(":")
        assert importlib.util.find_spec(module) is not None
        assert name == "app"


@pytest.fixture
def script(tmp_path: Path, load_script):
    """`scripts/flower_config.py ARGUMENTS` on a copy of the two files it keeps equal."""
    module = load_script("flower_config")
    (tmp_path / QUICKSTART).parent.mkdir()
    for file in (Path("pyproject.toml"), QUICKSTART):
        shutil.copy(ROOT / file, tmp_path / file)
    return lambda *arguments: module.main([*arguments, "--root", str(tmp_path)])


def test_a_quickstart_that_changes_alone_is_noticed(script, tmp_path: Path, capsys) -> None:
    assert script("--check") == 0
    old = (tmp_path / QUICKSTART).read_text(encoding="utf-8")
    (tmp_path / QUICKSTART).write_text(
        "runs.folder = 'elsewhere'\nsharing.'body.*lora_B*' = 'domain'\n" + old, encoding="utf-8"
    )
    assert script("--check") == 1
    assert "python scripts/flower_config.py" in capsys.readouterr().err
    assert script() == script("--check") == 0
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    flat = flattened(project["tool"]["flwr"]["app"]["config"])
    assert read_run_config(flat) == load_config(tmp_path / QUICKSTART)
    assert flat["runs.folder"] == "elsewhere"
    assert flat["sharing.body.*lora_B*"] == "domain"


def test_a_quickstart_that_flower_cannot_hold_is_refused(script, tmp_path: Path) -> None:
    with (tmp_path / QUICKSTART).open("a", encoding="utf-8") as file:
        file.write('\n[[domains.ner2.site]]\nname = "lab"\n[domains.ner2]\ntask = "token-classification"\n')
    with pytest.raises(ValueError, match=r"domains\.ner2\.site is a list, which Flower's run config cannot hold"):
        script()


def test_version_and_licence() -> None:
    project = PROJECT["project"]
    assert project["version"] == __version__
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in changelog


def test_dependencies_that_are_bounded_on_purpose() -> None:
    dependencies = PROJECT["project"]["dependencies"]
    assert "flwr[simulation]>=1.41,<1.42" in dependencies  # federation/flower_private.py names what is private in 1.41
    assert "torch>=2.6,<2.14" in dependencies
    assert not any(name in " ".join(dependencies) for name in ("torchvision", "datasets"))


@pytest.mark.slow
def test_a_wheel_holds_what_the_package_reads(tmp_path: Path) -> None:
    """Built from a copy, so that no build folder is left in the tree. pip fetches setuptools for it."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "fedfm", tree / "fedfm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--wheel-dir", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "Deprecat" not in built.stdout + built.stderr
    (wheel,) = tmp_path.glob("fedfm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"fedfm-{__version__}.dist-info/METADATA").decode()
    data = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "fedfm").rglob("*")
        if file.suffix in (".json", ".typed", ".html", ".safetensors")
    }
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "fedfm").rglob("*.py")}
    models = {f"fedfm/models/{name}" for name in ("tiny_tokenizer/tokenizer.json", "tiny_body/model.safetensors")}
    assert {"fedfm/py.typed", *models} <= data
    assert data | code <= names
    assert not any(name.startswith(("tests", "experiments")) for name in names)
    assert "License-Expression: Apache-2.0" in metadata
