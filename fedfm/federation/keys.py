"""Who a site is, in a text that people can compare: the fingerprint of its key, as `ssh-keygen -lf` prints it."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)

from fedfm.errors import ConfigError


def fingerprint(public_key: bytes) -> str:
    """`SHA256:...` of a public key in PEM form, as a SuperLink keeps it; "" for what is no key."""
    try:
        key = load_pem_public_key(public_key)
        blob = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    except (ValueError, UnsupportedAlgorithm, IndexError):
        return ""
    return "SHA256:" + b64encode(hashlib.sha256(b64decode(blob)).digest()).decode().rstrip("=")


def fingerprint_of_file(private_key: Path) -> str:
    """The fingerprint of the public half of an OpenSSH private key. Raises ConfigError where it cannot be read."""
    try:
        key = load_ssh_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        mend = "ssh-keygen -t ecdsa -b 384 -N '' makes such a key"
        raise ConfigError(f"the site's key cannot be read: {error}", where=private_key.name, mend=mend) from None
    return fingerprint(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
