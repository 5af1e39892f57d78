"""Sites with a site.toml in a whole federation: own data and disk, the same weights, refusals that harm nobody."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federation_helpers import TEXTS, Recorder, tiny, train_federation
from site_helpers import real_sites

from fedfm.errors import DataError, PolicyError, TooFewSitesError
from fedfm.federation.messages import read_order
from fedfm.federation.site_disk import Releases, check_same_data, run_folder
from fedfm.federation.site_store import read_private, save_private

SITES = {"finance-1": "finance", "finance-2": "finance"}


def left_out(done):
    return [(event["round"], event["site"], event["reason"]) for event in done.events("update-left-out")]


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_the_same_weights_and_all_that_is_private_at_the_site(tmp_path):
    config = tiny(tmp_path / "runs", "rounds=2", 'sharing."head.*"=private', "strategy.name=scaffold", finance=TEXTS)
    simulated = train_federation(config)
    real = train_federation(config, real_sites(tmp_path, SITES))
    assert real.sha256 == simulated.sha256
    assert real.private() == {}  # nothing of it lies with the coordinator
    for site in SITES:
        own = run_folder(tmp_path / site, str(real.folder.path)) / "checkpoint" / "sites" / site
        theirs = simulated.folder.path / "checkpoint" / "sites" / site
        assert files_below(own) == {"000001.safetensors", "000002.safetensors"}
        assert all((own / name).read_bytes() == (theirs / name).read_bytes() for name in files_below(own))
        assert Releases(tmp_path / site).count() == 2


def test_noise_of_a_real_site_cannot_be_made_again_from_the_seed(tmp_path):
    """Each of two runs of one seed: the mean of two sites' noise of deviation 0.01, apart by sqrt(2) 0.01 / sqrt(2)."""
    noisy = ("update.clip=1.0", "update.noise=0.01", "rounds=1")
    runs = [train_federation(tiny(tmp_path / "a", *noisy, finance=TEXTS)) for _ in "ab"]
    assert runs[0].sha256 == runs[1].sha256  # a simulation
    runs += [train_federation(tiny(tmp_path / "a", *noisy, finance=TEXTS), real_sites(tmp_path, SITES)) for _ in "ab"]
    for one, other in itertools.combinations(runs[1:], 2):
        apart = np.concatenate([np.ravel(one.weights[name] - other.weights[name]) for name in one.weights])
        assert apart.std() == pytest.approx(0.01, rel=0.05)
    rounded = ("update.compress=qsgd4", "rounds=1")  # drawn too, and no secret
    simulated = train_federation(tiny(tmp_path / "b", *rounded, finance=TEXTS))
    real = train_federation(tiny(tmp_path / "b", *rounded, finance=TEXTS), real_sites(tmp_path, SITES))
    assert real.sha256 == simulated.sha256


def test_its_own_source_takes_the_place_of_the_configurations(tmp_path):
    for site, words in (("finance-1", "north"), ("finance-2", "south")):
        rows = [f"{words} {label} {number},{label}" for number in range(12) for label in ("good", "bad")]
        (tmp_path / f"{site}.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    sources = {site: str(tmp_path / f"{site}.csv") for site in SITES}
    tables = [{"name": site, "source": source} for site, source in sources.items()]
    simulated = train_federation(tiny(tmp_path / "runs", finance=TEXTS | {"site": tables}))
    elsewhere = tiny(tmp_path / "runs", "data-root=/nowhere", finance=TEXTS | {"source": "never.csv"})
    real = train_federation(elsewhere, real_sites(tmp_path, SITES, sources=sources))
    assert real.sha256 == simulated.sha256
    assert real.folder.info["sites"]["finance-1"]["source"] == ""  # not even a name of what lies there


def test_who_has_sent_its_last_update_is_left_out_with_the_reason(tmp_path):
    config = tiny(tmp_path / "runs", "rounds=3", finance=TEXTS)
    Releases(tmp_path / "finance-2").file.parent.mkdir()
    with Releases(tmp_path / "finance-2").one_more():
        pass
    done = train_federation(config, real_sites(tmp_path, SITES, max_releases=3))
    ((number, site, reason),) = left_out(done)
    assert (number, site) == (3, "finance-2")
    assert reason.startswith('allow.max-releases: site "finance-2" refuses: it has sent 3 updates')
    assert Releases(tmp_path / "finance-1").count() == 3
    assert done.folder.info["status"] == "finished"


def test_a_refused_update_is_not_counted_and_leaves_nothing_behind(tmp_path):
    """Compressed by top-k, an update names no tensors: the site answers for all that it was sent."""
    config = tiny(tmp_path / "runs", 'sharing."head.*"=private', "update.compress=top-k", finance=TEXTS)
    recorder = Recorder(real_sites(tmp_path, SITES, groups=["domain"]))
    with pytest.raises(TooFewSitesError):
        train_federation(config, recorder)
    assert all(not up for _, _, up in recorder.of("train"))
    for site in SITES:
        assert Releases(tmp_path / site).count() == 0
        assert list((tmp_path / site).rglob("*.safetensors")) == []


def test_an_order_that_is_not_allowed_is_refused_before_data_are_read(tmp_path):
    config = tiny(tmp_path / "runs", "strategy.name=fedprox", finance=TEXTS)
    nowhere = dict.fromkeys(SITES, str(tmp_path / "nowhere"))
    with pytest.raises(PolicyError, match='it allows only fedavg, not "fedprox"'):
        train_federation(config, real_sites(tmp_path, SITES, sources=nowhere, strategies=["fedavg"]))


def test_what_is_wrong_with_data_stays_in_the_sites_own_log(tmp_path, capfd):
    source = tmp_path / "secret.csv"
    source.write_text("text,label\nJohn Doe has the flu,\n", encoding="utf-8")
    config = tiny(tmp_path / "runs", finance=TEXTS)
    with pytest.raises(DataError) as caught:
        train_federation(config, real_sites(tmp_path, SITES, sources=dict.fromkeys(SITES, str(source))))
    assert "its own log says why" in str(caught.value)
    assert "secret" not in str(caught.value) and "line" not in str(caught.value)
    assert "secret.csv, line 2" in capfd.readouterr().err


def test_data_that_change_under_the_same_name_are_noticed(tmp_path):
    """In the middle of a run: the site is left out from then on, and takes part again with its old data."""
    sources = {}
    for site in SITES:
        rows = [f"word {number},{label}" for number in range(20) for label in ("good", "bad")]
        sources[site] = tmp_path / f"{site}.csv"
        sources[site].write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    text = sources["finance-2"].read_text(encoding="utf-8")

    def change(site, message):
        if site == "finance-2" and message.metadata.message_type == "train":
            number = read_order(message)[0].round
            now = text.replace("word 7,good", "word 7,bad ") if number == 2 else text
            sources[site].write_text(now, encoding="utf-8")

    config = tiny(tmp_path / "runs", "rounds=3", finance=TEXTS | {"max-examples": 0})
    done = train_federation(config, real_sites(tmp_path, SITES, change, {s: str(f) for s, f in sources.items()}))
    reasons = left_out(done)
    assert [(number, site) for number, site, _ in reasons] == [(2, "finance-2")]
    assert "its data have changed since the run began: sha256" in reasons[0][2]
    assert done.folder.info["status"] == "finished"


def test_data_are_read_again_only_where_a_file_has_another_size_or_time(tmp_path):
    source, folder, read = tmp_path / "a.csv", tmp_path / "run", []
    folder.mkdir()
    source.write_text("one")

    def digest():
        read.append(source.read_text())
        return read[-1]

    for _ in range(3):
        check_same_data(folder, str(source), digest)
    assert read == ["one"]
    os.utime(source)
    check_same_data(folder, str(source), digest)
    assert read == ["one", "one"]  # touched, and the same
    source.write_text("two")
    for _ in range(2):
        with pytest.raises(DataError, match="have changed"):
            check_same_data(folder, str(source), digest)


@pytest.mark.parametrize("name", ["/x/..", "/x/.", "", "/", "/x/.hidden", "/x/" + "a" * 101, "/x/a b", "/x/ü"])
def test_what_a_coordinator_names_is_no_path_at_a_site(tmp_path, name):
    with pytest.raises(PolicyError, match="names no run"):
        run_folder(tmp_path, name)
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("name", ["/etc/cron.d/2026-fedavg-1a", "2026-fedavg-1a/", "C:\\runs\\2026-fedavg-1a"])
def test_of_a_coordinators_path_the_last_name_counts(tmp_path, name):
    assert run_folder(tmp_path, name) == tmp_path / "runs" / "2026-fedavg-1a"


def test_the_counter_counts_before_and_survives_a_kill(tmp_path):
    """A process is killed in the middle of sending, with the number already on the disk; damage stops everything."""
    code = (
        "import os, signal, sys; from pathlib import Path; from fedfm.federation.site_disk import Releases\n"
        "with Releases(Path(sys.argv[1])).one_more(): pass\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for count in (1, 2):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == -9
        assert Releases(tmp_path).count() == count
    with pytest.raises(RuntimeError), Releases(tmp_path).one_more():
        raise RuntimeError  # what does not leave is not counted
    assert Releases(tmp_path).count() == 2
    Releases(tmp_path).file.write_text('{"releases": "many"}')
    with pytest.raises(PolicyError, match="counter of updates is damaged"):
        Releases(tmp_path).count()


def test_two_processes_count_together(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fedfm.federation.site_disk import Releases\n"
        "for _ in range(20):\n    with Releases(Path(sys.argv[1])).one_more(): pass"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert Releases(tmp_path).count() == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_at_a_site_is_a_sentence_and_costs_only_its_round(tmp_path, monkeypatch, capfd):
    from fedfm.federation import site_store

    whole = Path.write_bytes

    def full(file, data):  # of site 2 in round 1, by a real device that has no room
        broken = file.parent.name == "finance-2" and file.name == "000001.tmp"
        return whole(Path("/dev/full") if broken else file, data)

    monkeypatch.setattr(site_store.Path, "write_bytes", full)
    config = tiny(tmp_path / "runs", "rounds=2", 'sharing."head.*"=private', finance=TEXTS)
    done = train_federation(config, real_sites(tmp_path, SITES))
    assert [(n, s) for n, s, _ in left_out(done)] == [(1, "finance-2")]
    assert 'the disk of site "finance-2" is full' in left_out(done)[0][2]
    assert "fedfm: the disk is full" in capfd.readouterr().err
    assert done.folder.info["status"] == "finished"


def test_what_is_kept_is_whole_or_not_there(tmp_path):
    import numpy as np

    save_private(tmp_path, "a", 1, {"x": np.arange(3.0)})
    (tmp_path / "a" / "000002.tmp").write_bytes(b"torn")
    assert read_private(tmp_path, "a", 9, 9)["x"].tolist() == [0, 1, 2]


def test_a_fault_at_a_site_is_named_and_its_words_stay_there(tmp_path, monkeypatch, capfd):
    """An error that is no sentence of ours may quote data."""
    from fedfm.federation import site

    def broken(order, received):
        if order.sites == ("finance-2",) and not order.split:
            raise ValueError("could not convert 'Jane Roe, born 1950'")
        return whole(order, received)

    whole = site.train
    monkeypatch.setattr(site, "train", broken)
    done = train_federation(tiny(tmp_path / "runs", finance=TEXTS), real_sites(tmp_path, SITES))
    assert left_out(done) == [(1, "finance-2", 'site "finance-2" failed (ValueError); its own log says where')]
    assert "Jane Roe" in capfd.readouterr().err
    assert "Jane Roe" not in (done.folder.path / "events.jsonl").read_text(encoding="utf-8")


def test_settings_that_are_spoilt_in_the_middle_of_a_run(tmp_path, capfd):
    def spoil(site, message):
        if site == "finance-2" and message.metadata.message_type == "train":
            (tmp_path / "finance-2.toml").write_text("site = 3\n", encoding="utf-8")

    done = train_federation(tiny(tmp_path / "runs", finance=TEXTS), real_sites(tmp_path, SITES, spoil))
    ((_, site, reason),) = left_out(done)
    assert site == "finance-2" and "the site's own settings cannot be read" in reason
    assert "must be a text" in capfd.readouterr().err
