"""`fedfm site check`: everything that a site's part in a run needs, looked at before a run does."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedfm import doctor
from fedfm.config.site import SiteSettings, load_site_settings
from fedfm.doctor import Finding
from fedfm.domains import CheckReport, check_path
from fedfm.engines.reaching import Answered, ask
from fedfm.errors import ConfigError, Problem, UserError

Check = Callable[[SiteSettings], Finding]
SKEW_SECONDS = 300.0  # beyond it, certificates and logs go wrong; Flower itself demands no equal clocks
DISK_GIB = 1.0
SOON_DAYS = 30


def examine_site(file: Path, offline: bool = False) -> list[Finding]:
    """Every check in order. Nothing is sent but a request for the coordinator's health page (not when `offline`)."""
    try:
        settings = load_site_settings(file)
    except ConfigError as error:
        return [Finding("settings", "problem", f"{p.where}: {p.what}", p.mend) for p in error.problems]
    done = [Finding("settings", "ok", f"site {settings.site} of domain {settings.domain}")]
    done += [check(settings) for check in HERE]
    done.append(doctor.flower_version())
    if not offline:
        done += _of_coordinator(settings)
    return done


def check_before_run(settings: SiteSettings) -> None:
    """What `fedfm site run` cannot do without. Raises UserError; the data are looked at when a run asks for them."""
    found = [check(settings) for check in (_state, _key, _certificate)]
    problems = [Problem(f.found, f.check, f.mend) for f in found if f.state == "problem"]
    if problems:
        raise UserError(problems)


def _data(settings: SiteSettings) -> Finding:
    if settings.source == "generated":
        return Finding("data", "note", "generated: this site takes part in a trial", "source = the path of real data")
    columns = {"text-column": settings.text_column, "label-column": settings.label_column}
    found: CheckReport = check_path(Path(settings.source), part=True, columns=columns)
    if found.problems:
        first, more = found.problems[0], sum(problem.count for problem in found.problems[1:])
        others = f" (and {more} more: fedfm data check)" if more else ""
        return Finding("data", "problem", f"{first.where}: {first.what}{others}", first.mend)
    train = int(found.rows[-1][1])
    what = f"{found.format}, {found.task}, {train} {found.rows[-1][0]} to train on, sha256 {found.sha256[:12]}..."
    least = settings.allow.min_examples
    if train < least:
        mend = "every order will be refused: more data, or a smaller allow.min-examples"
        return Finding("data", "problem", f"{what}, fewer than allow.min-examples = {least}", mend)
    labels = len(found.rows) - 1
    if settings.allow.finds_free_labels(found.task, labels, train):
        mend = "the names of labels leave the site: label-column, or a smaller allow.min-examples-per-label"
        return Finding("data", "problem", f"{what}, and {labels} labels, nearly as many", mend)
    return Finding("data", "note" if found.warnings else "ok", what, "; ".join(found.warnings[:2]))


def _state(settings: SiteSettings) -> Finding:
    folder = Path(settings.state)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = "give this user a folder of its own: state = ..."
        return Finding("state", "problem", f"{folder} cannot be written: {error.strerror}", mend)
    if Path(settings.source).is_relative_to(folder):
        mend = "put the data elsewhere, best where this program may only read"
        return Finding("state", "note", "the data lie in the state folder, which this program writes to", mend)
    return Finding("state", "ok", f"{folder} can be written")


def _disk(settings: SiteSettings) -> Finding:
    folder = Path(settings.state)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < DISK_GIB:
        mend = f"a run needs about {DISK_GIB:g} GiB there: make room, or choose another state folder"
        return Finding("disk", "problem", f"{free:.1f} GiB free for {settings.state}", mend)
    return Finding("disk", "ok", f"{free:.1f} GiB free for {settings.state}")


def _key(settings: SiteSettings) -> Finding:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    file = Path(settings.coordinator.private_key)
    quoted = shlex.quote(str(file))
    make = f"ssh-keygen -t ecdsa -b 384 -N '' -f {quoted}"
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        key = load_ssh_private_key(file.read_bytes(), None)
    except OSError as error:
        return Finding("private key", "problem", f"{file}: {error.strerror}", make)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return Finding("private key", "problem", f"{file} is no OpenSSH key without a password", make)
    if not isinstance(key, EllipticCurvePrivateKey):
        return Finding("private key", "problem", f"{file} is no EC key, which Flower wants", make)
    if mode & 0o077:
        state = "problem" if mode & 0o007 else "note"  # a mounted secret is often its group's to read
        return Finding("private key", state, f"others may read {file} (mode {mode:03o})", f"chmod 600 {quoted}")
    return Finding("private key", "ok", f"EC, {key.curve.name}, only this user may read it")


def _certificate(settings: SiteSettings) -> Finding:
    from cryptography import x509

    file = Path(settings.coordinator.root_certificates)
    try:
        roots = x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        return Finding("certificate", "problem", f"{file}: {error.strerror}", "ask the coordinator for its ca.crt")
    except ValueError:
        return Finding("certificate", "problem", f"{file} is no PEM file", "ask the coordinator for its ca.crt")
    days = min((root.not_valid_after_utc - datetime.now(UTC)).days for root in roots)
    early = max(root.not_valid_before_utc for root in roots) > datetime.now(UTC)
    if days < 0 or early:
        when = "is not valid yet" if early else "has expired"
        return Finding("certificate", "problem", f"the authority in {file} {when}", "renew it, or set the clock")
    if days < SOON_DAYS:
        return Finding("certificate", "note", f"the authority ends in {days} days", "ask the coordinator for a new one")
    return Finding("certificate", "ok", f"the authority is valid for {days} days")


def _of_coordinator(settings: SiteSettings) -> list[Finding]:
    """Reached over TLS with the certificates that this site trusts, and what its answer says of the clock."""
    answer: Answered = ask(settings.coordinator)
    where = settings.coordinator.address
    if answer.state != "ok":
        return [Finding("coordinator", "problem", f"{where}: {answer.found}", answer.mend)]
    reached = Finding("coordinator", "ok", f"{where} answers, its certificate covers that address")
    ahead = answer.clock_ahead
    if ahead is None:
        return [reached, Finding("clock", "note", "the coordinator does not tell its time")]
    if abs(ahead) > SKEW_SECONDS:
        which = "ahead of" if ahead > 0 else "behind"
        mend = "let NTP set the clock (timedatectl set-ntp true)"
        return [reached, Finding("clock", "problem", f"{abs(ahead):.0f} s {which} the coordinator's", mend)]
    return [reached, Finding("clock", "ok", f"within {max(abs(ahead), 2):.0f} s of the coordinator's")]


def _user(settings: SiteSettings) -> Finding:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Finding("user", "note", "root", "a user with no rights but to these files is enough, and safer")
    return Finding("user", "ok", "not root")


HERE: tuple[Check, ...] = (
    _data, _state, _disk, lambda settings: doctor.memory(), _user, _key, _certificate,
)  # fmt: skip
