"""A bundle that carries code, or names other components, is refused without a byte of it being unpacked or run."""

from __future__ import annotations

import inspect
import io
import zipfile

import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict

from fedfm.engines.flower import write_app
from fedfm.federation.bundle import COMPONENTS, faults_of_bundle
from fedfm.federation.flower_private import take_identity
from fedfm.federation.site_worker import app_for


def project(**components: str) -> str:
    app = {"publisher": "x", "components": components or COMPONENTS, "config": {}}
    return tomli_w.dumps({"project": {"name": "x", "version": "1"}, "tool": {"flwr": {"app": app}}})


def bundle(*files: tuple[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files:
            archive.writestr(name, text)
    return content.getvalue()


GOOD = (("pyproject.toml", project()), ("LICENSE", "Apache-2.0"), (".info/CONTENT", "..."))


def test_fedfms_own_bundle_has_no_fault(tmp_path):
    folder = write_app(tmp_path / "app")
    files = [(file.name, file.read_text(encoding="utf-8")) for file in folder.iterdir()]
    assert faults_of_bundle(bundle(*files, (".info/CONTENT", ""))) == []
    assert faults_of_bundle(bundle(*GOOD)) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((*GOOD, ("fedfm/__init__.py", "")), "it carries fedfm/__init__.py"),
        ((*GOOD, ("fedfm.py", "")), "it carries fedfm.py"),
        ((*GOOD, ("sitecustomize.py", "")), "it carries sitecustomize.py"),
        ((*GOOD, ("../LICENSE", "")), "it carries ../LICENSE"),
        ((*GOOD, ("data.json", "{}")), "it carries data.json"),
        ((("pyproject.toml", project(serverapp="x:a", clientapp="b:c")),), "its components are {'serverapp': 'x"),
        ((("pyproject.toml", project(**COMPONENTS, agentapp="evil:app")),), "its components are {"),
        ((("pyproject.toml", "#" + " " * 2**20 + "\n" + project()),), "is larger than"),
        ((("pyproject.toml", "["),), "it cannot be read (TOMLDecodeError)"),
        ((("pyproject.toml", "a = 1"),), "it cannot be read (KeyError)"),
        ((("LICENSE", ""),), "it cannot be read (KeyError)"),
    ],
)
def test_each_fault(files, said):
    faults = faults_of_bundle(bundle(*files))
    assert any(fault.startswith(said) or said in fault for fault in faults), faults


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_file_that_is_there_twice_could_be_read_as_another():
    other = ("pyproject.toml", project(clientapp="evil:app"))
    assert "it holds a file twice" in faults_of_bundle(bundle(GOOD[0], other))


@pytest.mark.parametrize("content", [b"", b"no archive", bundle(*GOOD)[:-30]])
def test_what_is_no_archive(content):
    assert faults_of_bundle(content) == ["it cannot be read (BadZipFile)"]


def answer_of(kind: str, content: bytes, message_type: str) -> Message:
    take_identity()
    message = Message(content=RecordDict(), message_type=message_type, dst_node_id=1)
    return app_for(kind, content)(message, Context(1, 1, {}, RecordDict(), {}, 0))


@pytest.mark.parametrize("message_type", ["query", "train", "evaluate"])
def test_the_refusal_is_an_error_with_a_reason_for_every_message(message_type, capfd):
    reply = answer_of("flwr-clientapp", bundle(*GOOD, ("evil.py", "")), message_type)
    assert reply.error.code == 7
    assert reply.error.reason == (
        "the site runs only the code of its own fedfm, and refuses this bundle: it carries evil.py"
    )
    assert f"fedfm: refused a {message_type} message" in capfd.readouterr().err


def test_a_task_that_is_no_client_app_is_refused_too():
    reply = answer_of("flwr-agentapp", bundle(*GOOD), "train")
    assert "the task is a flwr-agentapp" in reply.error.reason


def test_a_good_bundle_gets_the_installed_app():
    from fedfm.federation.client_app import app

    assert app_for("flwr-clientapp", bundle(*GOOD)) is app


def test_flower_still_has_the_two_steps_that_are_taken_out():
    """`play` replaces them by name: were they renamed, or code unpacked elsewhere too, this Flower would not do."""
    from flwr.supernode.runtime import run_clientapp as flower

    source = inspect.getsource(flower.run_clientapp)
    assert source.count("install_from_fab(fab.content, skip_prompt=True)") == 1
    assert source.count("get_load_client_app_fn(") == 1
    assert source.count("fab.content") == 1
