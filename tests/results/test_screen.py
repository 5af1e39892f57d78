"""What a run looks like: on a terminal, in a log, when quiet, from another process, when it breaks."""

from __future__ import annotations

import io
import json
import re

import pytest
from fake_run import PRIMARY, ROUNDS, events
from rich.console import Console

from fedfm.results import lines
from fedfm.results.screen import Pace, Screen, follow


def show(stream: list[dict], *, terminal: bool, width: int = 80, quiet: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={"TERM": "xterm"})
    with Screen(console, quiet=quiet) as screen:
        for event in stream:
            screen.handle(event)
    return console.file.getvalue()


def visible(text: str) -> list[str]:
    """Lines without control sequences."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def started(**changes) -> dict:
    return events()[0] | changes


def test_plain_lines_are_aligned_and_hold_no_control_characters():
    text = show(events(), terminal=False)
    assert all(character.isprintable() or character == "\n" for character in text)
    table = [line for line in text.splitlines() if re.match(r"(round| +\d) ", line)]
    assert table[0] == ("round     loss  medical auc  finance macro_f1  ner f1  worst  sites     sent    time")
    assert table[1] == ("    1    0.880        0.699             0.538   0.392  0.392    7/7   4.2 MB   1.6 s")
    assert len(table) == 1 + ROUNDS
    assert len({len(line) for line in table}) == 1
    assert all(line == line.rstrip() for line in text.splitlines())


def test_header_tells_what_runs_and_that_data_are_generated():
    text = show(events()[:1], terminal=False, width=100)
    assert "run 20260102-030405-fedavg-1a2b3c   strategy fedavg   engine local   seed 0   6 rounds\n" in text
    assert (
        "7 sites: finance-1 finance-2 finance-3 (finance)  medical-1 medical-2 (medical)  ner-1 ner-2 (ner)\n" in text
    )
    assert "body tiny, LoRA r=8\nsent per site and round, at most: 310 kB down, 290 kB up\n" in text
    assert "generated data: medical, finance, ner (scores say nothing about real data)\n" in text
    assert "generated" not in show([started(generated=[])], terminal=False)


def test_many_sites_are_counted_instead_of_named():
    sites = {f"clinic-{number}": "medical" for number in range(40)} | {"bank": "finance"}
    assert "41 sites: 40 (medical)  1 (finance)" in show([started(sites=sites)], terminal=False)


def test_final_table_puts_the_primary_metric_first():
    text = show(events(), terminal=False, width=100)
    tail = text[text.index("finished after") :]
    assert tail == (
        "finished after 6 rounds, 12 s\n"
        "\n"
        "domain   test score      other test scores\n"
        "medical  auc 0.922       accuracy 0.942  macro_f1 0.932  balanced_accuracy 0.912\n"
        "finance  macro_f1 0.799  accuracy 0.809\n"
        "ner      f1 0.649        precision 0.669  recall 0.659  token_accuracy 0.639\n"
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_on_a_terminal_every_line_fits(width):
    out = visible(show(events(), terminal=True, width=width))
    assert max(map(len, out)) <= width
    assert sum(bool(re.match(r" +[1-6] ", line)) for line in out) >= ROUNDS


def test_a_terminal_shows_a_bar_over_the_sites_and_the_time_left():
    now = iter(range(1000))
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    stream = events()
    with Screen(console, clock=lambda: float(next(now))) as screen:
        for event in stream[:14]:  # one round and a few sites of the second
            screen.handle(event)
        screen._bar.refresh()
    assert re.search(r"round 2/6 train .*3/7 sites about 10 s left", "\n".join(visible(console.file.getvalue())))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [20, 60])
def test_many_domains_and_long_names_survive_a_narrow_terminal(terminal, width):
    domains = {f"a-domain-with-quite-a-long-name-{number}": "balanced_accuracy" for number in range(12)}
    final = {domain: {"balanced_accuracy": 0.5, "f1": None} for domain in domains}
    scores = dict.fromkeys(domains, 0.25)
    stream = [
        started(sites={f"site-of-{d}": d for d in domains}, primary=domains, generated=list(domains)),
        {"event": "round-finished", "round": 1, "scores": scores, "mean": 0.25, "worst": 0.25, "seconds": 4000.0},
        {"event": "run-finished", "status": "finished", "rounds": 6, "seconds": 4000.0, "final": final},
    ]
    text = show(stream, terminal=terminal, width=width)
    assert "0.250" in text
    if terminal:
        assert max(map(len, visible(text))) <= width
        assert any(re.match(r"round +(loss +)?mean +worst", line) for line in visible(text))
    else:
        assert text.count("0.250") == 13  # a log has room for all of them, and the worst


def test_scores_and_losses_that_are_missing_or_nan_become_dashes():
    row = {"event": "round-finished", "round": 0, "loss": float("nan"), "worst": None, "seconds": 1.0}
    scores = {"medical": float("nan"), "finance": None}
    text = show([started(), row | {"scores": scores, "sites_used": 5, "sites_asked": 7}], terminal=False)
    assert text.splitlines()[-1].split() == ["0", "-", "-", "-", "-", "-", "5/7", "0", "B", "1.0", "s"]


def test_an_event_with_nothing_but_its_kind_is_shown_somehow():
    kinds = ["run-started", "phase", "site-finished", "update-left-out", "warning", "round-finished", "run-finished"]
    for terminal in (True, False):
        assert show([{"event": kind} for kind in [*kinds, "checkpoint"]], terminal=terminal)


def test_left_out_updates_and_warnings_are_sentences():
    reason = "312 of 294912 values in shared/a are not finite"
    left_out = {"event": "update-left-out", "round": 3, "site": "ner-1", "domain": "ner", "reason": reason}
    text = show([left_out, {"event": "warning", "message": "[no] GPU"}], terminal=False)
    assert text == f"warning: round 3: update of ner-1 (ner) left out: {reason}\nwarning: [no] GPU\n"


def test_quiet_prints_warnings_alone_and_on_standard_error(capsys):
    out = show([*events(), {"event": "warning", "message": "no GPU"}], terminal=True, quiet=True)
    assert out == ""
    assert capsys.readouterr() == ("", "warning: no GPU\n")


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_broke_off_says_how_to_go_on(status):
    stream = events()[:20]
    end = {"event": "run-finished", "status": status, "rounds": 2, "seconds": 65.0, "final": {}, "folder": "runs/x"}
    text = show([*stream, end | {"reason": "site ner-1 [x] is gone"}], terminal=False)
    assert text.endswith(
        f"{status} after 2 of 6 rounds, 1 min\nsite ner-1 [x] is gone\nto go on: fedfm resume runs/x\n"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_inside_comes_out_as_it_is_and_the_display_ends(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), Screen(console) as screen:  # noqa: PT012, the loop is the run
        for event in events()[:12]:
            screen.handle(event)
        raise KeyboardInterrupt
    text = console.file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == int(terminal)  # the cursor is back


def test_pace_judges_by_the_last_three_rounds_or_by_the_first_sites():
    """Round 1, a quarter done in 3 s: 12 s a round, 4 - 0.25 rounds to go. Then rounds of 9, 2, 4, 6 s: 4 s a round."""
    pace = Pace(4)
    assert pace.left(1, 0.0, 3.0) is None
    assert pace.left(1, 0.25, 3.0) == 12 * 3.75
    pace.recent.extend([9.0, 2.0, 4.0, 6.0])
    assert pace.left(4, 0.5, 100.0) == 4 * 0.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.2, "about 5 s left"),
        (41, "about 45 s left"),
        (130, "about 2 min left"),
        (4200, "about 1 h 10 min left"),
    ],
)
def test_time_left_is_rounded_as_an_estimate(seconds, text):
    assert lines.time_left(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (312_400, "312 kB"), (999_700, "1000 kB"), (4_200_000, "4.2 MB")],
)
def test_bytes_have_three_digits(count, text):
    assert lines.in_bytes(count) == text


def test_round_zero_does_not_count_for_the_pace():
    screen = Screen(Console(file=io.StringIO()))
    screen.handle(started())
    for round, seconds in ((0, 0.1), (1, 8.0)):
        screen.handle({"event": "round-finished", "round": round, "seconds": seconds, "scores": {}})
    assert list(screen._pace.recent) == [8.0]


def test_columns_make_room_from_the_least_important():
    widths = {width: [" ".join(c.title) for c in lines.columns(PRIMARY, width)] for width in (90, 75, 60, 45, 20)}
    assert widths[90][2] == "medical auc"
    assert widths[90][-2:] == ["sent", "time"]
    assert widths[75] == widths[90]
    assert widths[60] == ["round", "medical auc", "finance macro_f1", "ner f1", "worst", "sites", "time"]
    assert widths[45] == ["round", "medical auc", "finance macro_f1", "ner f1", "worst"]
    assert widths[20] == ["round", "mean", "worst"]


def test_follow_waits_for_the_file_and_for_whole_lines(tmp_path):
    path, seen = tmp_path / "events.jsonl", []
    first, second = (json.dumps({"event": "warning", "message": text}) + "\n" for text in ("a", "b"))
    steps = iter(["", first[:9], first[9:] + second[:5], second[5:] + "damaged\n[1]\n", first])

    def stop() -> bool:
        """Between any two looks, one more piece is written."""
        piece = next(steps, None)
        if piece:
            with open(path, "a", encoding="utf-8") as file:
                file.write(piece)
        return piece is None

    for event in follow(path, stop, pause=0.0):
        seen.append(event["message"])
    assert seen == ["a", "b", "a"]


def test_a_followed_run_looks_like_one_that_was_watched(folder):
    written = [folder.event(event["event"], **{k: v for k, v in event.items() if k != "event"}) for event in events()]
    followed = list(follow(folder.path / "events.jsonl", stop=lambda: True))
    assert followed == written
    assert show(followed, terminal=False) == show(events(), terminal=False)
