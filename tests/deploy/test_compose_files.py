"""What the compose files and manifests say, read without starting anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from containers import ROOT

from fedfm.config import load_config
from fedfm.config.site import load_site_settings

DOCKER = ROOT / "docker"
FILES = ("compose.yml", "coordinator.compose.yml", "site.compose.yml")
MANIFESTS = ("site", "coordinator")
SERVICES = [(file, name) for file in FILES for name in yaml.safe_load((DOCKER / file).read_text())["services"]]


def service(file: str, name: str) -> dict:
    return yaml.safe_load((DOCKER / file).read_text(encoding="utf-8"))["services"][name]


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_a_service_has_no_right_that_it_does_not_need(file: str, name: str) -> None:
    told = service(file, name)
    assert told["user"] == "10001:10001"
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"] and "cap_add" not in told and not told.get("privileged")
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert told["mem_limit"] and told["cpus"] and told["pids_limit"]
    assert set(told["logging"]["options"]) == {"max-size", "max-file"}
    assert bool(told.get("ports")) == (name == "proxy")
    if "tools" not in told.get("profiles", []):
        assert told["restart"] == "always"
        assert "healthcheck" in told or name == "superexec"  # which has no port, and ends when it cannot go on
    for volume in told["volumes"]:
        source, target = re.sub(r"\$\{\w+:[^}]*\}", "x", volume).split(":")[:2]
        own = source in ("superlink", "runs", "state", "medical", "finance", "ner")
        assert own or volume.endswith(":ro"), f"{target} can be written"


def test_nothing_is_insecure() -> None:
    for file in [*DOCKER.rglob("*.yml"), *DOCKER.rglob("*.yaml"), DOCKER / "Dockerfile"]:
        assert "insecure" not in file.read_text(encoding="utf-8"), file
    command = " ".join(service("coordinator.compose.yml", "superlink")["command"])
    assert all(flag in command for flag in ("--ssl-certfile", "--enable-supernode-auth", "--isolation=process"))
    assert "--database=/var/lib/fedfm/superlink/" in command


def test_the_superlink_is_in_no_network_with_sites() -> None:
    networks = yaml.safe_load((DOCKER / "coordinator.compose.yml").read_text(encoding="utf-8"))["networks"]
    assert networks["inside"]["internal"] is True
    for name in ("superlink", "superexec", "fedfm", "flwr"):
        assert service("coordinator.compose.yml", name)["networks"] == ["inside"]
    for name in ("medical", "finance", "ner"):
        assert service("compose.yml", name)["networks"] == ["outside"]


def test_the_settings_that_are_shipped_can_be_read() -> None:
    files = [DOCKER / "site.toml", DOCKER / "kubernetes" / "site" / "site.toml", *(DOCKER / "sites").glob("*.toml")]
    assert {load_site_settings(file).domain for file in files} == {"medical", "finance", "ner"}
    config = load_config(DOCKER / "config" / "federation.toml")
    assert config.engine.superlink == "coordinator"


@pytest.mark.parametrize("side", MANIFESTS)
def test_manifests_are_what_kubernetes_takes(side: str) -> None:
    """Strictly, against the schema of the API that kubernetes-validate ships: an unknown or misspelt key fails."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds a kustomization, is not installed")
    built = subprocess.run(
        ["kubectl", "kustomize", str(DOCKER / "kubernetes" / side)], check=True, capture_output=True, text=True
    )
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    kinds = {document["kind"] for document in documents}
    assert {"StatefulSet", "NetworkPolicy", "ConfigMap"} <= kinds and "Secret" not in kinds
    wrong = next(document for document in documents if document["kind"] == "StatefulSet")
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContexts"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("side", MANIFESTS)
def test_pods_are_as_shut_as_containers_of_compose(side: str) -> None:
    folder = DOCKER / "kubernetes" / side
    documents = [d for f in ("network.yaml", f"{side}.yaml") for d in yaml.safe_load_all((folder / f).read_text())]
    (policy,) = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == ([] if side == "site" else [{"ports": [{"protocol": "TCP", "port": "sites"}]}])
    (pod,) = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "StatefulSet"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]
        assert "ports" not in container or container["name"] == "proxy"


def test_the_locks_fit_the_project() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "lock.py"), "--check"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pinned = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    names = re.findall(r"^[\w.-]+(?:\[[^\]]*\])?==", pinned, flags=re.M)
    hashed = re.findall(r"^[\w.-]+(?:\[[^\]]*\])?==[^\n]*\\\n(?:    --hash=sha256:[0-9a-f]{64})", pinned, flags=re.M)
    assert len(names) == len(hashed) > 100
