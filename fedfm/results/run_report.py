"""`report.html` of one run; every number in it stands in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedfm.results.audit import read_chain
from fedfm.results.audit_page import CANNOT_LEAVE, left_each_site
from fedfm.results.contributions import contributions_folder
from fedfm.results.explanations import NOTE, explanations_html, load_explanations
from fedfm.results.files import replace_text
from fedfm.results.lines import in_bytes, in_time
from fedfm.results.page import figure, folded, page, paragraph, table
from fedfm.results.provenance import configuration, data, environment
from fedfm.results.run_folder import RunFolder

CAPTIONS = {
    "overview": "Primary metric of every domain against rounds, validation.",
    "drift": "Norm of each site's update, and its cosine to the mean of all updates, by round.",
    "labels": "Training labels at each site.",
    "calibration": "Calibration on test: how often a prediction was right, by how probable it was said to be.",
    "bytes": "Primary metric of every domain against megabytes sent, validation.",
    "traffic": "Bytes of training messages by round.",
    "contributions": "Validation score that a site brings: by its Shapley value, or by what is lost without it.",
    "timeline": "Seconds that each site worked.",
}


def write_run_report(folder: RunFolder) -> Path:
    """Write `<run>/report.html` from what lies in the folder, figures and intervals too; returns its path."""
    events = _events(folder)
    info = folder.info
    sections = [
        ("scores", "Scores", _scores(info, folder.intervals)),
        ("figures", "Figures", _figures(folder)),
        ("rounds", "Rounds", folded("all rounds", table(folder.rounds))),
        ("contributions", "What each site brings", _contributions(folder)),
        ("explanations", "Predictions, explained", _explanations(folder)),
        ("left", "What left each site", _left(folder)),
        ("failures", "Failures, left-out updates, warnings", _failures(info, events)),
        ("configuration", "Configuration", configuration(folder)),
        ("data", "Data", data(folder)),
        ("environment", "Environment", environment(folder)),
    ]
    if info["status"] == "failed":  # what a reader looks for first
        sections.sort(key=lambda section: section[0] != "failures")
    text = page(f"Run {info['name']}", summary_sentence(info, folder.rounds, events), sections)
    replace_text(folder.path / "report.html", text)
    return folder.path / "report.html"


def summary_sentence(info: Mapping, rounds: pd.DataFrame, events: list[dict]) -> str:
    """What ran, how it ended, what it scored, in plain words."""
    sites = info.get("sites") or {}
    domains = sorted({about["domain"] for about in sites.values()})
    done = int(rounds["round"].max()) if len(rounds) else 0
    who = f"{len(sites)} sites of {len(domains)} domains ({', '.join(domains)})" if sites else "No site"
    words = [f"{who}, strategy {info['strategy']}, seed {info['seed']}: {info['status']} after {done} rounds."]
    if info["status"] == "failed":
        why = str(info.get("reason") or "no reason").splitlines()[0]
        words.append(f"It failed: {why.rstrip('.')}.")
    shown = info.get("final_personal") or info.get("final") or {}
    primary = info.get("primary") or {}
    scored = [f"{d} {primary[d]} {s[primary[d]]:.3f}" for d, s in shown.items() if s.get(primary.get(d)) is not None]
    if scored:
        whose = "the sites' own models" if info.get("final_personal") else "the global model"
        words.append(f"On test, {whose}: {', '.join(scored)}.")
    left_out = sum(event.get("event") == "update-left-out" for event in events)
    if left_out:
        words.append("1 update was left out." if left_out == 1 else f"{left_out} updates were left out.")
    if len(rounds):
        total = in_bytes(float((rounds["bytes_up"] + rounds["bytes_down"]).sum()))
        words.append(f"{total} of training messages, {in_time(float(rounds['seconds'].sum()))}.")
    return " ".join(words)


def _scores(info: Mapping, intervals: pd.DataFrame) -> str:
    primary, html = info.get("primary") or {}, ""
    bounds = intervals.set_index(["model", "domain"])[["low", "high"]].to_dict("index")
    own, whole = info.get("final_personal"), "Global model, on each domain's pooled test examples"
    new = "; what sites keep to themselves is as it was at the start, as a new site has it" if own else ""
    for model, title, final in (
        ("personal", "The sites' own models, each on its own site's test examples", own),
        ("global", whole + new, info.get("final")),
    ):
        rows = []
        for domain, scores in (final or {}).items():
            name = primary[domain]
            rows.append({"domain": domain, "primary": name, "score": scores[name]}
                        | bounds.get((model, domain), {"low": None, "high": None})
                        | {metric: value for metric, value in scores.items() if metric != name})  # fmt: skip
        if rows:
            html += f"<h3>{title}</h3>" + table(rows)
    said = "low, high: 95 % bootstrap interval of the primary metric over test items, of this one run (intervals.csv)."
    return html + (paragraph(said, "note") if len(intervals) and html else "")


def _figures(folder: RunFolder) -> str:
    target, html = folder.path / "figures", ""
    captions = dict(CAPTIONS)
    for domain in folder.info.get("primary") or {}:
        captions[f"metric_{domain}"] = f"{domain}: primary metric against rounds, by site."
        captions[f"confusion_{domain}"] = f"{domain}: test examples, truth by prediction."
        captions[f"entities_{domain}"] = f"{domain}: entities on test."
    for name, caption in captions.items():
        html += figure(target / f"{name}.svg", caption)
    return html


def _contributions(folder: RunFolder) -> str:
    """Of `fedfm contributions` with the same configuration, whose folder lies beside the run's."""
    place = contributions_folder(folder.path.parent, folder.info["config_sha256"])
    if not (place / "contributions.csv").exists():
        return ""
    found = pd.read_csv(place / "contributions.csv", keep_default_na=False)
    drawn = figure(place / "contributions.svg", CAPTIONS["contributions"])
    return drawn + table(found) + paragraph(f"From {place.name}/contributions.csv.", "note")


def _explanations(folder: RunFolder) -> str:
    parts = [
        explanations_html(explained) + paragraph(f"{domain}: explanations/{domain}.csv.", "note")
        for domain, explained in load_explanations(folder.path).items()
    ]
    said = "By integrated gradients (Sundararajan et al. 2017), of inputs given to fedfm explain. "
    return paragraph(said + NOTE, "note") + "".join(parts) if parts else ""


def _left(folder: RunFolder) -> str:
    record = folder.path / "audit.jsonl"  # of a run across machines; of a simulation sent.csv
    if record.exists():
        return left_each_site(read_chain(record, filter(None, [folder.info.get("audit_sha256")])))
    sent = folder.sent
    if not len(sent):
        return paragraph("No message has left a site as an update of this run.") + paragraph(CANNOT_LEAVE, "note")
    alone = sent.groupby(["site", "what"], sort=False).agg(
        messages=("round", "size"), tensors=("tensors", "max"), bytes=("bytes", "sum"), together=("together", "max")
    )
    said = (
        "In a simulation sites of one process may share a message, whose bytes and digest are then those of all of "
        "them (together: how many). Digests are SHA-256 over names and values of the tensors."
    )
    parts = [
        folded(f"every message of {site}", table(own.drop(columns=["site", "domain"])))
        for site, own in sent.groupby("site")
    ]
    return paragraph(CANNOT_LEAVE) + table(alone.reset_index()) + paragraph(said, "note") + "".join(parts)


def _failures(info: Mapping, events: list[dict]) -> str:
    html = paragraph(str(info["reason"]), "bad") if info.get("reason") else ""
    left_out = [
        {"round": e.get("round"), "site": e.get("site"), "reason": e.get("reason")}
        for e in events
        if e.get("event") == "update-left-out"
    ]
    warnings = [{"warning": e.get("message")} for e in events if e.get("event") == "warning"]
    html += table(left_out) + table(warnings)
    return html or paragraph("None.")


def _events(folder: RunFolder) -> list[dict]:
    file = folder.path / "events.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
