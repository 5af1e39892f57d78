"""What the reports of a run and of a comparison both say: configuration, data, environment."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fedfm.config import RunConfig
from fedfm.config.models import DomainConfig
from fedfm.results.page import differences, folded, paragraph, table
from fedfm.results.run_folder import RunFolder

LICENCE_LENGTH = 400


def configuration(folder: RunFolder) -> str:
    """The keys that are not at their defaults, and all of them, folded."""
    config = folder.config
    default = RunConfig().to_dict()
    default["domains"] = {
        name: DomainConfig(task=settings.task).model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, settings in config.domains.items()
    }
    rows = differences(config.to_dict(), default)
    return table(rows) + folded("all keys", f"<pre>{escape(config.to_toml())}</pre>")


def data(folder: RunFolder) -> str:
    """A row a site: source ("": a real site's own), digest, examples of each split; licences beside the sources."""
    info, rows, licences = folder.info, [], {}
    root = Path(folder.config.data_root)
    for site, about in (info.get("sites") or {}).items():
        counts = {
            split: counted.get("sentences", sum(counted.values())) for split, counted in about["label_counts"].items()
        }
        rows.append({"site": site, "domain": about["domain"], "source": about["source"], **counts}
                    | {"sha256": about["sha256"][:16]})  # fmt: skip
        text = "" if about["source"] in ("", "generated") else _licence(root / about["source"])
        if text:
            licences[about["source"]] = text
    notes = "".join(folded(f"licence of {source}", f"<pre>{escape(text)}</pre>") for source, text in licences.items())
    generated = info.get("generated") or []
    said = f"Generated data, which say nothing about real data: {', '.join(generated)}." if generated else ""
    return (paragraph(said, "note") if said else "") + table(rows) + notes


def environment(folder: RunFolder) -> str:
    """Versions, hardware, commit, as run.json has them."""
    flat: dict[str, Any] = {}
    info = folder.info
    known = {"name", "status", "sites", "final", "final_personal", "primary", "generated", "reason", "error"}
    for key, value in info.items():
        if isinstance(value, dict) and key not in known:
            flat |= {f"{key} {inner}": each for inner, each in value.items() if not isinstance(each, dict)}
        elif key not in known and not isinstance(value, list):
            flat[key] = value
    return table([{"what": key, "value": str(value)} for key, value in flat.items()])


def _licence(source: Path) -> str:
    """The beginning of a LICENSE or LICENCE file in the source's folder."""
    folder = source if source.is_dir() else source.parent
    found = sorted(folder.glob("LICEN[CS]E*")) if folder.is_dir() else []
    return found[0].read_text(encoding="utf-8", errors="replace")[:LICENCE_LENGTH] if found else ""
