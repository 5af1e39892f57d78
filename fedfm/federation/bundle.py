"""The Flower bundle of a run carries no code: what is in it, and what a site finds if somebody else made it.

A site never unpacks a bundle. It plays every message with the apps of the fedfm that is installed there (see
`site_worker`), so that code from the network has no way to run; this look says why such a run is refused.
"""

from __future__ import annotations

import io
import tomllib
import zipfile

SERVER_APP = "fedfm.federation.server_app:app"
CLIENT_APP = "fedfm.federation.client_app:app"
COMPONENTS = {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
PROJECT = "pyproject.toml"
FILES = {PROJECT, "LICENSE", "README.md", ".info/CONTENT"}
LARGEST_PROJECT = 2**20  # bytes; a configuration is some kilobytes


def faults_of_bundle(content: bytes) -> list[str]:
    """Why a bundle is none of fedfm's, each reason a clause; none for one that is. Nothing of it is written or run."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            names = bundle.namelist()
            foreign = sorted(set(names) - FILES)
            faults = [f"it carries {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}"] if foreign else []
            if len(set(names)) < len(names):
                faults.append("it holds a file twice")
            if bundle.getinfo(PROJECT).file_size > LARGEST_PROJECT:
                return [*faults, f"its {PROJECT} is larger than {LARGEST_PROJECT} bytes"]
            project = tomllib.loads(bundle.read(PROJECT).decode("utf-8"))
        components = project["tool"]["flwr"]["app"]["components"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        return [f"it cannot be read ({type(error).__name__})"]
    if components != COMPONENTS:
        faults.append(f"its components are {components}, not those of fedfm")
    return faults
