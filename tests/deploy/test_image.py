"""The container image as a stranger would test it."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from containers import CANARY, Podman

import fedfm

pytestmark = pytest.mark.deploy
STRICT = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none", "--tmpfs=/tmp")
NAMES = (".git", ".env", ".netrc", "pip.conf", "id_rsa", "ca.key", "server.key", "patients.csv")


def findings(podman: Podman, image: str) -> list[str]:
    """Files of any layer, also of ones that a later layer hides, whose name or content is a secret's."""
    found = []
    with (
        subprocess.Popen(["podman", "save", image], env=podman.environment, stdout=subprocess.PIPE) as saved,
        tarfile.open(fileobj=saved.stdout, mode="r|") as archive,
    ):
        for part in archive:
            if not part.isfile():
                continue
            stream = archive.extractfile(part)
            if part.name.endswith(".tar"):
                with tarfile.open(fileobj=stream, mode="r|") as layer:
                    found += list(_suspects(layer))
            elif CANARY.encode() in stream.read():
                found.append(part.name)
    assert saved.returncode == 0
    return found


def _suspects(layer: tarfile.TarFile):
    for member in layer:
        name = Path(member.name).name
        content = layer.extractfile(member).read() if member.isfile() else b""
        if name in NAMES or CANARY.encode() in content:
            yield member.name


def test_who_it_is_and_what_it_says(podman: Podman, image: str) -> None:
    (told,) = json.loads(podman("image", "inspect", image).stdout)
    config = told["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["fedfm"]
    assert not config.get("ExposedPorts")
    assert config["Labels"]["org.opencontainers.image.version"] == fedfm.__version__
    environment = dict(line.split("=", 1) for line in config["Env"])
    commit = config["Labels"]["org.opencontainers.image.revision"]
    assert environment["FEDFM_IMAGE"] == f"{fedfm.__version__}+{commit}"
    assert len(commit) >= 7
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0" and environment["HF_HUB_OFFLINE"] == "1"


def test_it_works_with_nothing_but_a_temporary_folder(podman: Podman, image: str) -> None:
    assert podman("run", "--rm", *STRICT, image, "--version").stdout.strip() == f"fedfm {fedfm.__version__}"
    config = "rounds = 1\n[domains.finance]\ntask = 'text-classification'\nmax-examples = 24\n"
    run = f'printf "{config}" > /tmp/run.toml && fedfm run /tmp/run.toml runs.folder=/tmp/runs'
    script = f"{run} && cat /tmp/runs/*/run.json"
    done = podman("run", "--rm", *STRICT, "--entrypoint=sh", image, "-c", script)
    assert '"status": "finished"' in done.stdout


def test_it_has_no_rights(podman: Podman, image: str) -> None:
    write = "for f in / /etc /opt/fedfm /var/lib/fedfm; do touch $f/x && echo wrote $f; done"
    script = f"id -u; grep CapEff /proc/self/status; {write}; true"
    plain = podman("run", "--rm", "--network=none", "--entrypoint=sh", image, "-c", script)
    assert plain.stdout.split() == ["10001", "CapEff:", "0000000000000000", "wrote", "/var/lib/fedfm"]
    strict = podman("run", "--rm", *STRICT, "--entrypoint=sh", image, "-c", script)
    assert strict.stdout.split() == ["10001", "CapEff:", "0000000000000000"]
    owned = "find / -xdev -user 10001 -not -path '/proc/*' -not -path '/var/lib/fedfm*' -not -path '/tmp*'"
    found = podman("run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", image, "-c", f"{owned}; echo done")
    assert found.stdout == "done\n"


def test_it_can_neither_build_nor_install(podman: Podman, image: str) -> None:
    tools = "pip pip3 uv gcc cc g++ make git curl wget"
    script = f"for t in {tools}; do command -v $t; done; python3 -m pip --version; python3 -m ensurepip --version; true"
    done = podman("run", "--rm", "--network=none", "--entrypoint=sh", image, "-c", script)
    assert done.stdout == ""
    assert "No module named pip" in done.stderr
    assert "No module named ensurepip" in done.stderr


def test_no_layer_holds_a_secret(podman: Podman, image: str, tmp_path: Path) -> None:
    """The build had secrets in its settings and beside its sources; an image that took one in is found out."""
    assert findings(podman, image) == []
    (tmp_path / "Dockerfile").write_text(f"FROM {podman.base()}\nCOPY note /srv/note\nRUN rm /srv/note\n")
    (tmp_path / "note").write_text(CANARY)
    podman("build", "--tag=localhost/fedfm-test-leak", tmp_path)
    try:
        assert findings(podman, "localhost/fedfm-test-leak") == ["srv/note"]
    finally:
        podman("rmi", "localhost/fedfm-test-leak")
