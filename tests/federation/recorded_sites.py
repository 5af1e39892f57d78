"""Real sites on the in-process grid: with settings and keys of their own, and a coordinator that keeps a record too."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from federation_helpers import IMAGES, TEXTS, Outcome, outcome, tiny
from flwr.app import Context, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.audit import read_chain
from fedfm.results.run_folder import RunFolder

SITES = {1: ("medical-1", "medical"), 2: ("finance-1", "finance")}
SETTINGS = """
site = "{site}"
domain = "{domain}"
source = "generated"
[coordinator]
address = "coordinator.example.org:8000"
root-certificates = "ca.crt"
private-key = "key"
[allow]
min-examples = 1
"""


def make_site(folder: Path, site: str, domain: str) -> Path:
    """A site's folder with its settings and a key of its own; the settings."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    (folder / "site.toml").write_text(SETTINGS.format(site=site, domain=domain), encoding="utf-8")
    return folder / "site.toml"


def public_key(folder: Path) -> bytes:
    """The public half of a site's key as a SuperLink keeps it."""
    key = serialization.load_ssh_private_key((folder / "key").read_bytes(), None).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class RealSites(LocalGrid):
    """The in-process grid over nodes with settings, as `fedfm site run` gives them, and keys, as a SuperLink has."""

    def __init__(self, folder: Path, node_app=app):
        super().__init__(node_app, len(SITES))
        self.folders = {node: folder / site for node, (site, _) in SITES.items()}
        for node, (site, domain) in SITES.items():
            settings = make_site(self.folders[node], site, domain)
            config = {"site": site, "domain": domain, "settings": str(settings)}
            self._contexts[node] = Context(1, node, config, RecordDict(), {}, 0)

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=public_key(folder)) for node, folder in self.folders.items()]

    def chain(self, node: int):
        return read_chain(self.folders[node] / "state" / "audit.jsonl")


def run_recorded(folder: Path, node_app=app, *overrides: str) -> tuple[RealSites, Outcome]:
    """Two rounds with two real sites; the coordinator keeps a record because a SuperLink is named."""
    data = {"medical": {**IMAGES, "sites": 1}, "finance": {**TEXTS, "sites": 1}}
    config = tiny(folder / "runs", "rounds=2", *overrides, **data)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"superlink": "net"})})
    run, grid = RunFolder.create(config), RealSites(folder, node_app)
    RoundLoop(grid, config, run).run()
    return grid, outcome(run)
