"""The worker of a real site: messages are played one after another, and one that never comes keeps nothing waiting."""

import os
import threading
import time

import pytest

from fedfm.federation import site_worker


class DoneError(Exception):
    pass


class GivenTasks:
    """A SuperNode that hands out `tokens`, and when a file says so ends the worker."""

    def __init__(self, tokens, is_done):
        self.tokens, self.is_done = list(tokens), is_done

    def take(self):
        if self.is_done():
            raise DoneError
        return ("flwr-clientapp", self.tokens.pop(0)) if self.tokens else None


@pytest.fixture
def play_tasks(monkeypatch, tmp_path):
    """Play `tokens` until `is_done`, each by what `play` does with its token and a function that says: message is here.

    In place of Flower's part of a task; processes, pipe and loop are the real ones.
    """
    monkeypatch.setattr(site_worker, "WARM", ())
    monkeypatch.setattr(site_worker, "_load_a_body", lambda: None)
    monkeypatch.setattr(site_worker, "POLL_SECONDS", 0.01)

    def run(tokens, play, is_done):
        monkeypatch.setattr(site_worker, "Tasks", lambda address, secret: GivenTasks(tokens, is_done))
        monkeypatch.setattr(site_worker, "play", lambda _, token, app_for: play(token, lambda: app_for(b"no bundle")))
        assert threading.active_count() == 1, "forks"
        with pytest.raises(DoneError):
            site_worker.work("nowhere", b"")

    return run


def test_a_message_that_never_comes_keeps_no_other_waiting(play_tasks, tmp_path, monkeypatch):
    """As when a run ends while a site is getting its message: the query of the next run is answered all the same."""
    monkeypatch.setattr(site_worker, "PULL_SECONDS", 0.2)

    def play(token, message_is_here):
        (tmp_path / f"{token}.pid").write_text(str(os.getpid()))
        if token == "lost":
            time.sleep(60)
        message_is_here()
        (tmp_path / token).touch()

    started = time.monotonic()
    play_tasks(["lost", "next"], play, (tmp_path / "next").exists)
    assert time.monotonic() - started < 30
    assert not (tmp_path / "lost").exists()
    lost = int((tmp_path / "lost.pid").read_text())
    os.kill(lost, 9)
    os.waitpid(lost, 0)


def test_two_messages_are_not_worked_on_at_the_same_time(play_tasks, tmp_path):
    def play(token, message_is_here):
        message_is_here()
        with open(tmp_path / "log", "a") as log:
            log.write(f"{token} begins\n")
            log.flush()
            time.sleep(0.3)
            log.write(f"{token} ends\n")

    def is_done():
        return (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("ends") == 2

    play_tasks(["a", "b"], play, is_done)
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert lines == ["a begins", "a ends", "b begins", "b ends"]


def test_a_message_that_is_killed_is_told(play_tasks, tmp_path, capfd):
    def play(token, message_is_here):
        message_is_here()
        if token == "b":
            (tmp_path / "b").touch()
            return
        os.kill(os.getpid(), 9)

    play_tasks(["a", "b"], play, (tmp_path / "b").exists)
    assert "a message was ended by signal 9: was it killed for memory?" in capfd.readouterr().err
