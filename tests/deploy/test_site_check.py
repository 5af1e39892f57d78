"""`fedfm site check` on a site as it should be, with one thing wrong at a time, and against servers of every bad kind.

These need no Flower: a small HTTPS server in a thread stands for the coordinator.
"""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from certificates import Certificates, write_certificates, write_site_key
from deployment import free_port
from real_data import write_reports
from site_files import put, write_site

from fedfm.cli import main
from fedfm.commands.site_check import examine_site
from fedfm.config.site import CoordinatorConfig
from fedfm.engines.reaching import ask


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return write_certificates(tmp_path_factory.mktemp("ca"), ["localhost"], ["127.0.0.1"])


@pytest.fixture
def site(tmp_path, certificates) -> Path:
    """A site that is as it should be, but for a coordinator at a port where nobody is."""
    key, _ = write_site_key(tmp_path / "key")
    source = write_reports(tmp_path / "reports")
    return write_site(tmp_path / "site", "bank", "finance", source, f"127.0.0.1:{free_port()}", certificates.ca, key)


@contextmanager
def server(certificates: Certificates | None, status: int = 200, ahead: timedelta = timedelta()) -> Iterator[int]:
    """The port of a server that answers /health; plain HTTP without certificates, its clock `ahead` of ours."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.handle_error = lambda *_: None  # who does not trust it hangs up in the handshake
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield listener.server_address[1]
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def link(port: int, ca: Path, host: str = "127.0.0.1") -> CoordinatorConfig:
    return CoordinatorConfig.model_validate(
        {"address": f"{host}:{port}", "root-certificates": str(ca), "private-key": "key"}
    )


def found(file: Path, check: str, offline: bool = True) -> tuple[str, str, str]:
    """(state, what was found, how to mend it) of one check."""
    (one,) = [f for f in examine_site(file, offline) if f.check == check]
    return one.state, one.found, one.mend


def add(file: Path, line: str) -> None:
    """One more line in [allow]."""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("[allow]", f"[allow]\n{line}"), encoding="utf-8")


def test_a_site_as_it_should_be(site, capsys):
    assert main(["site", "check", str(site), "--offline"]) == 0
    assert "0 problems" in capsys.readouterr().out
    assert "12 examples to train on" in found(site, "data")[1]
    assert {f.check for f in examine_site(site, offline=True)} == {
        "settings", "data", "state", "disk", "memory", "user", "private key", "certificate", "flower",
    }  # fmt: skip


def test_with_its_coordinator(site, certificates):
    with server(certificates) as port:
        put(site, "address", f"127.0.0.1:{port}")
        assert found(site, "coordinator", offline=False)[0] == "ok"
        assert found(site, "clock", offline=False) == ("ok", "within 2 s of the coordinator's", "")


def test_a_coordinator_that_is_away_is_a_problem_of_the_check(site, capsys):
    assert main(["site", "check", str(site)]) == 2
    assert "nothing listens there" in capsys.readouterr().out


def test_wrong_settings_are_all_told(site, capsys):
    put(site, "site", "bank one")
    add(site, "round = 3")
    assert main(["site", "check", str(site)]) == 2
    out = capsys.readouterr().out
    assert "must be a word of up to 64 letters" in out and "unknown key" in out and "2 problems" in out


def test_data(site, tmp_path):
    state, what, _ = found(site, "data")
    assert (state, "text-classification" in what) == ("ok", True)
    add(site, "min-examples = 13")
    assert "fewer than allow.min-examples = 13" in found(site, "data")[1]
    (tmp_path / "reports" / "train.csv").write_text("text,label\na,\n")
    assert found(site, "data")[0] == "problem"
    put(site, "source", str(tmp_path / "nowhere"))
    assert found(site, "data")[0] == "problem"


def test_private_key(site, tmp_path):
    assert found(site, "private key")[0] == "ok"
    key = tmp_path / "key"
    key.chmod(0o640)
    assert found(site, "private key")[0] == "note"
    key.chmod(0o644)
    assert found(site, "private key")[::2] == ("problem", f"chmod 600 {key}")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other = Ed25519PrivateKey.generate()
    key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    assert "no EC key" in found(site, "private key")[1]
    key.write_text("nonsense")
    assert "no OpenSSH key" in found(site, "private key")[1]
    key.unlink()
    assert "No such file" in found(site, "private key")[1]


def test_a_run_does_not_begin_without_key_certificate_and_state(site, tmp_path, capsys):
    (tmp_path / "key").unlink()
    put(site, "state", str(tmp_path / "reports" / "train.csv"))
    assert main(["site", "run", str(site)]) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said and "private key: " in said and "cannot be written" in said


def test_root_certificates(site, tmp_path):
    assert found(site, "certificate")[0] == "note"  # those of the tests last two days
    ca = tmp_path / "ca.crt"
    put(site, "root-certificates", str(ca))
    assert "No such file" in found(site, "certificate")[1]
    ca.write_text("nonsense")
    assert "no PEM file" in found(site, "certificate")[1]


def test_a_state_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "file").write_text("")
    put(site, "state", str(tmp_path / "file"))
    assert found(site, "state")[0] == "problem"


@pytest.mark.parametrize(("ahead", "state"), [(0, "ok"), (200, "ok"), (400, "problem"), (-400, "problem")])
def test_clocks(site, certificates, ahead, state):
    with server(certificates, ahead=timedelta(seconds=ahead)) as port:
        put(site, "address", f"127.0.0.1:{port}")
        seen = found(site, "clock", offline=False)
    assert seen[0] == state
    if state == "problem":
        assert ("behind" if ahead > 0 else "ahead of") in seen[1]


# ---- the ways in which a coordinator does not answer -----------------------------------------------------------------


def test_another_authority(certificates, tmp_path):
    other = write_certificates(tmp_path / "other", ["localhost"], ["127.0.0.1"])
    with server(certificates) as port:
        assert ask(link(port, certificates.ca)).state == "ok"
        answer = ask(link(port, other.ca))
    assert answer.state == "wrong" and "not signed by the authority in root-certificates" in answer.found


def test_a_certificate_for_another_name(tmp_path):
    other = write_certificates(tmp_path / "other", ["elsewhere.example"], ["10.0.0.1"])
    with server(other) as port:
        for host in ("127.0.0.1", "localhost"):
            answer = ask(link(port, other.ca, host))
            assert answer.state == "wrong" and f"for another name than {host}" in answer.found


def test_plain_http(certificates):
    with server(None) as port:
        answer = ask(link(port, certificates.ca))
    assert answer.state == "wrong" and "speaks no TLS" in answer.found


@pytest.mark.parametrize(("status", "state"), [(404, "wrong"), (502, "away"), (200, "ok")])
def test_what_a_proxy_says(certificates, status, state):
    with server(certificates, status) as port:
        assert ask(link(port, certificates.ca)).state == state


def test_nobody_there(certificates):
    assert ask(link(free_port(), certificates.ca)).found == "nothing listens there"
    assert ask(link(1, certificates.ca, "no-such-host.invalid")).state == "away"


def test_a_coordinator_that_is_silent(certificates):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        answer = ask(link(silent.getsockname()[1], certificates.ca), seconds=0.3)
    assert answer.state == "away" and "no answer within 0.3 s" in answer.found
