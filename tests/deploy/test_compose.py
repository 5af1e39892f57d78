"""compose.yml with three sites on data that they may only read: the local engine's weights, and one door for sites."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import PATIENCE, ROOT, Podman
from real_data import real_config, write_config, write_sources

pytestmark = pytest.mark.deploy
SITES = {"medical": "medical", "finance": "finance", "ner": "ner"}
KNOCK = """
import http.client, ssl, sys
context = ssl.create_default_context(cafile="/certs/ca.crt")
for line in sys.stdin.read().split():
    method, path = line.split(",")
    door = http.client.HTTPSConnection("coordinator", 8000, context=context, timeout=60)
    door.request(method, path, body=b"" if method == "POST" else None)
    print(line, door.getresponse().status)
"""


class Federation:
    """The committed compose.yml under podman-compose, in a copy of docker/ with certificates and data."""

    def __init__(self, podman: Podman, folder: Path, image: str):
        self.podman, self.folder, self.image = podman, folder, image
        self.project = f"fedfmtest{os.getpid()}"
        shutil.copytree(ROOT / "docker", folder)
        subprocess.run([folder / "make-certs.sh", "coordinator", "coordinator"], cwd=folder, check=True)
        subprocess.run([folder / "make-certs.sh", "site", *SITES], cwd=folder, check=True)
        sources = write_sources(folder / "data", SITES)
        inside = {site: Path("/data") / path.name for site, path in sources.items()}
        write_config(real_config(folder, inside, "runs.folder=runs", sites=SITES), folder / "config" / "test.toml")
        with socket.socket() as probe:
            probe.bind(("", 0))
            self.port = probe.getsockname()[1]

    def compose(self, *words: str) -> subprocess.CompletedProcess:
        command = [str(Path(sys.executable).with_name("podman-compose")), "-p", self.project, "--profile", "tools"]
        environment = self.podman.environment | {
            "FEDFM_TAG": self.image,
            "PROXY_TAG": self.podman.proxy(),
            "PORT": str(self.port),
        }
        return subprocess.run(
            [*command, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def tool(self, name: str, *words: str) -> subprocess.CompletedProcess:
        """A command at the coordinator."""
        return self.compose("run", "-T", "--rm", name, *words)

    def container(self, service: str) -> str:
        return f"{self.project}_{service}_1"

    def up(self) -> None:
        services = ("superlink", "superexec", "proxy", *SITES)
        started = self.compose("up", "-d", *services)
        assert started.returncode == 0, started.stdout + started.stderr
        deadline = time.monotonic() + PATIENCE
        while self.podman("healthcheck", "run", self.container("superlink"), check=False).returncode:
            assert time.monotonic() < deadline, self.podman("logs", self.container("superlink")).stderr
            time.sleep(1.0)
        for site in SITES:
            done = self.tool("flwr", "supernode", "register", f"/etc/fedfm/certs/sites/{site}.pub", "coordinator")
            assert "registered successfully" in done.stdout, done.stdout + done.stderr

    def at_a_site(self, *words: str, stdin: str = "", mounts: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """A foreign command on the sites' side of the proxy, with a site's own certificates."""
        command = ["podman", "run", "-i", "--rm", f"--network={self.project}_outside", "--env=HOME=/tmp"]
        command += [f"--volume={self.folder}/certs/sites/medical:/certs:ro", *(f"--volume={m}" for m in mounts)]
        return subprocess.run(
            [*command, f"--entrypoint={words[0]}", self.image, *words[1:]],
            input=stdin, env=self.podman.environment, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    def down(self) -> None:
        self.compose("down", "-v", "-t", "5")


@pytest.fixture(scope="module")
def federation(podman: Podman, image: str, tmp_path_factory) -> Iterator[Federation]:
    there = Federation(podman, tmp_path_factory.mktemp("compose") / "docker", image)
    try:
        there.up()
        yield there
    finally:
        there.down()


def test_three_sites_give_the_weights_of_the_local_engine(federation: Federation) -> None:
    config = "/etc/fedfm/config/test.toml"
    done = federation.tool("fedfm", "run", config, "engine.name=flower", "engine.superlink=coordinator")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = done.stdout.strip().splitlines()[-1].strip()
    record = federation.podman("exec", federation.container("superexec"), "cat", f"{folder}/run.json").stdout
    script = f"fedfm run {config} runs.folder=/tmp/runs >&2 && cat /tmp/runs/*/run.json"
    volumes = [
        f"--volume={federation.folder / name}:{at}:ro"
        for name, at in (("data", "/data"), ("config", "/etc/fedfm/config"))
    ]
    local = federation.podman("run", "--rm", *volumes, "--entrypoint=sh", federation.image, "-c", script).stdout
    deployed, alone = json.loads(record), json.loads(local)
    assert deployed["status"] == alone["status"] == "finished"
    assert deployed["final_weights_sha256"] == alone["final_weights_sha256"]


def test_a_site_reaches_the_fleet_and_nothing_else(federation: Federation) -> None:
    """Control and Runtime are shut, however their paths are written; a wrong signature is Flower's own refusal."""
    shut = [
        "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-runs", "/v1/runtime/acquire-task",
        "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "//v1/control/list-runs",
        "/v1/%63ontrol/list-runs", "/V1/control/list-runs", "/v1/fleet/pull-messages?x=/v1/control/list-runs",
        "https://coordinator/v1/control/list-runs", "/docs", "/openapi.json",
    ]  # fmt: skip
    asked = [f"POST,{path}" for path in shut] + ["GET,/docs", "GET,/v1/fleet/pull-messages", "GET,/health"]
    asked += ["POST,/v1/fleet/pull-messages"]
    told = federation.at_a_site("python3", "-c", KNOCK, stdin="\n".join(asked))
    answers = dict(line.rsplit(" ", 1) for line in told.stdout.splitlines())
    assert answers.pop("GET,/health") == "200", told.stderr
    assert answers.pop("POST,/v1/fleet/pull-messages") in ("400", "401", "415", "422")  # reached, and refused there
    assert set(answers) == set(asked) - {"GET,/health", "POST,/v1/fleet/pull-messages"}
    assert set(answers.values()) == {"403"}


def test_a_site_finds_no_way_round_the_proxy(federation: Federation) -> None:
    """SuperLink's own name means nothing on the sites' network, and its address leads nowhere from there."""
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    superlink = federation.podman("inspect", federation.container("superlink"), "--format", networks).stdout.strip()
    script = "import socket, sys; socket.create_connection((sys.argv[1], 8000), timeout=10)"
    medical = federation.container("medical")
    assert federation.podman("exec", medical, "python3", "-c", script, "coordinator", check=False).returncode == 0
    for address, says in ((superlink, "Error"), ("superlink", "gaierror")):
        done = federation.podman("exec", medical, "python3", "-c", script, address, check=False)
        assert done.returncode == 1 and says in done.stderr.splitlines()[-1], address


def test_a_site_can_neither_submit_a_run_nor_register_a_key(federation: Federation) -> None:
    """With Flower's own command, the right authority and its own key; the same words work at the coordinator."""
    home = federation.folder / "stranger"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "c"\n[superlink.c]\naddress = "coordinator:8000"\nroot-certificates = "/certs/ca.crt"\n'
    )
    (home / "app").mkdir()
    (home / "app" / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "me"\n[tool.flwr.app.components]\nserverapp = "fedfm.federation.server_app:app"\n'
        'clientapp = "fedfm.federation.client_app:app"\n[tool.flwr.app.config]\n'
    )
    subprocess.run(["chown", "-R", "10001:10001", home], check=True)
    before = federation.tool("flwr", "list", "coordinator", "--format", "json")
    for words in ("flwr supernode register /certs/key.pub c", "flwr run /flower/app c", "flwr list c"):
        mount = f"{home}:/flower"
        refused = federation.at_a_site("env", "FLWR_HOME=/flower", *words.split(), mounts=(mount,))
        assert refused.returncode != 0, words
        assert "403" in refused.stdout + refused.stderr or "forbidden" in (refused.stdout + refused.stderr).lower()
    after = federation.tool("flwr", "list", "coordinator", "--format", "json")
    assert json.loads(after.stdout)["runs"] == json.loads(before.stdout)["runs"]


def test_containers_have_no_more_than_they_need(federation: Federation) -> None:
    """What podman says of each: no capability, a root that cannot be written, data that cannot be changed, one port."""
    for service in ("superlink", "superexec", "proxy", *SITES):
        (told,) = json.loads(federation.podman("inspect", federation.container(service)).stdout)
        host = told["HostConfig"]
        assert told["EffectiveCaps"] in ([], None), service
        assert host["ReadonlyRootfs"] and not host["Privileged"], service
        assert "no-new-privileges" in " ".join(host["SecurityOpt"]), service
        assert host["Memory"] > 0 and host["PidsLimit"] == 512, service
        assert host["RestartPolicy"]["Name"] == "always", service
        published = {port for port, bound in (host["PortBindings"] or {}).items() if bound}
        assert published == ({"8000/tcp"} if service == "proxy" else set()), service
        shown = " ".join(told["Config"]["Env"]) + " ".join(told["Config"]["Cmd"] or [])
        assert "PRIVATE KEY" not in shown
        if service in SITES:
            (data,) = [mount for mount in told["Mounts"] if mount["Destination"] == "/data"]
            assert data["RW"] is False
            tried = federation.podman("exec", federation.container(service), "touch", "/data/x", check=False)
            assert "Read-only file system" in tried.stderr
