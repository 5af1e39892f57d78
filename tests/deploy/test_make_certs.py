"""docker/make-certs.sh: certificates that verify, keys that only their owner reads, nothing overwritten."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from containers import ROOT
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="needs openssl, ssh-keygen"
    ),
]


@pytest.fixture
def make(tmp_path: Path):
    """`make-certs.sh WORDS` in an empty folder."""
    command = str(ROOT / "docker" / "make-certs.sh")
    return lambda *words: subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_certificate_holds_for_its_addresses(make, tmp_path: Path) -> None:
    done = make("coordinator", "coordinator.example.org", "192.0.2.7", "2001:db8::7")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "certs" / "coordinator"
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", folder / "ca.crt"]
    for name in ("-verify_hostname=coordinator.example.org", "-verify_hostname=superlink", "-verify_ip=192.0.2.7"):
        flag, value = name.split("=")
        subprocess.run([*verify, flag, value, folder / "server.crt"], check=True, capture_output=True)
    wrong = subprocess.run(
        [*verify, "-verify_hostname", "evil.example.org", folder / "server.crt"], capture_output=True
    )
    assert wrong.returncode != 0
    names = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes()).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)} == {
        "127.0.0.1",
        "192.0.2.7",
        "2001:db8::7",
    }


def test_private_files_are_their_owners(make, tmp_path: Path) -> None:
    make("coordinator", "c.example.org")
    make("site", "st-mary")
    certs = tmp_path / "certs"
    for file in ("authority/ca.key", "coordinator/server.key", "sites/st-mary/key"):
        assert stat.S_IMODE((certs / file).stat().st_mode) == 0o600
    key = load_ssh_private_key((certs / "sites/st-mary/key").read_bytes(), None)
    assert isinstance(key.curve, SECP384R1)
    public = load_ssh_public_key((certs / "coordinator/sites/st-mary.pub").read_bytes())
    assert public.public_numbers() == key.public_key().public_numbers()
    handed = {file.name for file in (certs / "sites/st-mary").iterdir()}
    assert handed == {"key", "key.pub", "ca.crt"}
    assert not list((certs / "coordinator").rglob("ca.key"))


def test_a_second_call_changes_nothing(make, tmp_path: Path) -> None:
    make("coordinator", "c.example.org", "d.example.org")
    make("site", "a")
    before = contents(tmp_path)
    assert make("coordinator", "d.example.org", "c.example.org").returncode == 0  # the same names
    assert make("site", "a").returncode == 0
    assert contents(tmp_path) == before
    assert make("site", "a", "b").returncode == 0  # what is missing is made
    assert before.items() < contents(tmp_path).items()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("coordinator", "other.example.org"), "move certs/coordinator away"),
        (("coordinator",), "under which names"),
        (("coordinator", "a,DNS:evil"), "no host name"),
        (("site", "../x"), "a site's name is a word"),
        (("nonsense",), "make-certs.sh coordinator ADDRESS"),
    ],
)
def test_what_it_refuses(make, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    make("coordinator", "c.example.org")
    before = contents(tmp_path)
    done = make(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert contents(tmp_path) == before
