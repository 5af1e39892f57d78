"""Is the coordinator there? One HTTPS request to its health page, and a sentence for each way in which it fails."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from fedfm.config.site import CoordinatorConfig

SECONDS = 10.0
MISMATCHED = 62  # OpenSSL's numbers: the host's name, or its IP address, is not in the certificate
MISMATCHED_ADDRESS = 64
TOO_EARLY = 9
TOO_LATE = 10


@dataclass(frozen=True)
class Answered:
    """`state`: "ok"; "away" (no answer: wait for it); "wrong" (waiting mends nothing: certificates, plain HTTP, ...).

    `clock_ahead`: seconds by which this machine's clock is ahead of the coordinator's, where that is known.
    """

    state: Literal["ok", "away", "wrong"]
    found: str
    mend: str = ""
    clock_ahead: float | None = None


def ask(coordinator: CoordinatorConfig, seconds: float = SECONDS) -> Answered:
    """Ask `https://address/health`, trusting the site's root certificates and no others; no proxy is used."""
    host, port = coordinator.host_and_port
    try:
        context = ssl.create_default_context(cafile=coordinator.root_certificates)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"root certificates cannot be read: {reason} ({coordinator.root_certificates})"
        return Answered("wrong", what, "put the coordinator's ca.crt there")
    connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    try:
        connection.request("GET", "/health")
        reply = connection.getresponse()
        reply.read()
        now = datetime.now(UTC)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, host)
    except ssl.SSLError as error:
        mend = "is this the SuperLink's port, and was it started with --ssl-certfile?"
        return Answered("wrong", f"what answers there speaks no TLS ({error.reason or error})", mend)
    except socket.gaierror:
        return Answered("away", f'no machine is named "{host}"', "correct coordinator.address, or the DNS")
    except TimeoutError:
        return Answered("away", f"no answer within {seconds:g} s", f"may this machine reach {host}, port {port}?")
    except ConnectionRefusedError:
        return Answered("away", "nothing listens there", "is the SuperLink up, and is this its port?")
    except (OSError, http.client.HTTPException) as error:
        return Answered("away", f"the connection broke: {error}", "a firewall or a proxy in between?")
    finally:
        connection.close()
    if reply.status >= 500:
        return Answered("away", f"a proxy answers, the coordinator does not (HTTP {reply.status})", "is it up?")
    if reply.status != 200:
        mend = "correct coordinator.address; a proxy must pass on /health"
        return Answered("wrong", f"what answers there is no SuperLink (HTTP {reply.status} for /health)", mend)
    return Answered("ok", "answers", clock_ahead=_seconds_ahead(reply.getheader("Date"), now))


def _unverified(error: ssl.SSLCertVerificationError, host: str) -> Answered:
    if error.verify_code in (MISMATCHED, MISMATCHED_ADDRESS):
        mend = f"the coordinator's certificate must hold {host} in its subject alternative names"
        return Answered("wrong", f"its certificate is for another name than {host}", mend)
    if error.verify_code in (TOO_EARLY, TOO_LATE):
        when = "not valid yet" if error.verify_code == TOO_EARLY else "expired"
        return Answered("wrong", f"its certificate is {when}", "set this machine's clock, or renew the certificate")
    what = f"its certificate is not signed by the authority in root-certificates ({error.verify_message})"
    return Answered("wrong", what, "ask the coordinator for its ca.crt; is somebody else answering?")


def _seconds_ahead(date: str | None, now: datetime) -> float | None:
    """Whole seconds, as HTTP's Date has them: a difference below 1.5 s is none."""
    if not date:
        return None
    try:
        ahead = (now - parsedate_to_datetime(date)).total_seconds() - 0.5
    except (TypeError, ValueError):
        return None
    return ahead if abs(ahead) > 1.5 else 0.0
