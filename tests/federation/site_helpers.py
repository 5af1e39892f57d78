"""Real sites in a test's process: the app of a node that has settings, its messages, and its state on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from federation_helpers import NodeApp
from flwr.app import Context, Message, RecordDict

from fedfm.config.site import SiteSettings
from fedfm.federation.client_app import app

COORDINATOR = {"address": "localhost:8000", "root-certificates": "ca.crt", "private-key": "key"}


def settings_for(
    folder: Path, site: str, domain: str, source: str = "generated", own: dict[str, str] | None = None, **allow: Any
) -> SiteSettings:
    """`own`: further keys of the file. `allow`: keys with underscores; one training example is enough."""
    rules = {name.replace("_", "-"): value for name, value in {"min_examples": 1, **allow}.items()}
    here = {"site": site, "domain": domain, "source": source, "state": str(folder / site), **(own or {})}
    return SiteSettings.model_validate({**here, "coordinator": COORDINATOR, "allow": rules})


def write_settings(settings: SiteSettings, folder: Path) -> Path:
    import tomli_w

    if not (folder / "key").exists():  # one for all: no SuperLink looks at it
        key = ec.generate_private_key(ec.SECP384R1())
        (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    file = folder / f"{settings.site}.toml"
    file.write_text(tomli_w.dumps(settings.model_dump(mode="json", by_alias=True)), encoding="utf-8")
    return file


def real_sites(
    folder: Path, sites: dict[str, str], before: Callable[[str, Message], None] = lambda site, message: None,
    sources: dict[str, str] | None = None, own: dict[str, str] | None = None, **allow: Any,
) -> NodeApp:  # fmt: skip
    """A node app whose nodes are the real sites of `sites` (site -> domain), each with a site.toml of its own.

    `before` is called with every message before its site sees it. `own`, `allow`: of all sites.
    """
    files = {}
    for node, (site, domain) in enumerate(sites.items(), 1):
        source = (sources or {}).get(site, "generated")
        files[node] = site, write_settings(settings_for(folder, site, domain, source, own, **allow), folder)

    def node_app(message: Message, context: Context) -> Message:
        node = message.metadata.dst_node_id
        site, file = files[node]
        before(site, message)
        here = {"site": site, "domain": sites[site], "settings": str(file)}
        return app(message, Context(context.run_id, node, here, RecordDict(), {}, 0))

    return node_app
