"""podman for tests: the image of fedfm and that of its proxy, on a machine where no registry of images is reached.

The base image is made by debootstrap from the mirror that this machine's apt uses, and kept as `localhost/fedfm-base`;
FEDFM_TEST_BASE names another. The pip of the build gets this machine's settings as a secret, and the local folders that
they name as volumes. Some machines let no container raise its limits, or have no systemd: SETTINGS are for those.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE, IMAGE, PROXY = "localhost/fedfm-base:latest", "localhost/fedfm-test:latest", "localhost/fedfm-test-proxy:latest"
CANARY = "canary-of-a-secret-in-the-build"  # stands in every secret that a build gets, and must be in no layer
PATIENCE = 1800.0  # seconds; on 2 busy cores an image takes ten minutes
SETTINGS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
"""


def missing() -> str:
    """Why no container can be tested here; "" if they can."""
    for tool in ("podman", "debootstrap"):
        if shutil.which(tool) is None and not (tool == "debootstrap" and os.environ.get("FEDFM_TEST_BASE")):
            return f"{tool} is not installed"
    return "" if os.geteuid() == 0 else "debootstrap and podman's networks want root here"


@dataclass(frozen=True)
class Podman:
    """podman with settings of its own in `folder`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        file = self.folder / "containers.conf"
        if not file.exists():
            runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
            file.write_text(SETTINGS + runtime, encoding="utf-8")
        return os.environ | {"CONTAINERS_CONF": str(file), "DISABLE_HC_SYSTEMD": "true"}

    def __call__(self, *words: object, check: bool = True) -> subprocess.CompletedProcess:
        """`podman WORDS`; its output as text."""
        done = subprocess.run(
            ["podman", *map(str, words)], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0 or not check, f"podman {' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
        return done

    def has(self, image: str) -> bool:
        return self("image", "exists", image, check=False).returncode == 0

    def base(self) -> str:
        """An image with python3, its venv and certificates."""
        if named := os.environ.get("FEDFM_TEST_BASE"):
            return named
        if not self.has(BASE):
            root = self.folder / "root"
            words = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates", *_debian(), str(root)]
            suite, mirror = words[2], words[3]
            subprocess.run(["debootstrap", *words[:2], suite, str(root), mirror], check=True, capture_output=True)
            archive = self.folder / "root.tar"
            subprocess.run(
                ["tar", "-C", str(root), "-cf", str(archive), "--exclude=./var/cache/apt/archives/*", "."], check=True
            )
            self("import", archive, BASE)
            archive.unlink()
            shutil.rmtree(root)
        return BASE

    def image(self, context: Path, commit: str) -> str:
        """The image that docker/Dockerfile makes of `context`."""
        settings, volumes = _pip_settings(self.folder)
        self(
            "build", "--file", context / "docker" / "Dockerfile", "--tag", IMAGE, "--network=host",
            "--build-arg", f"BASE={self.base()}", "--build-arg", "VERSION=0.1.0", "--build-arg", f"COMMIT={commit}",
            "--secret", f"id=pip,src={settings}", *(f"--volume={place}:/host{place}:ro" for place in volumes), context,
        )  # fmt: skip
        return IMAGE

    def proxy(self) -> str:
        """Debian's haproxy, in the place of the official image."""
        if not self.has(PROXY):
            folder = self.folder / "proxy"
            folder.mkdir()
            (folder / "Dockerfile").write_text(
                f"FROM {self.base()}\nRUN apt-get update && apt-get install -y --no-install-recommends haproxy\n",
                encoding="utf-8",
            )
            self("build", "--tag", PROXY, "--network=host", folder)
        return PROXY


def context_of(folder: Path) -> Path:
    """A copy of the tree as a builder may have it: with keys, data and a history that must stay out of the image."""
    folder.mkdir()
    for name in ("docker", "fedfm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "certs"))
    for name in (".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in (".env", ".git/config", "docker/certs/authority/ca.key", "data/patients.csv", "fedfm.toml"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CANARY, encoding="utf-8")
    return folder


def _debian() -> list[str]:
    """Suite and mirror of the Debian that this machine has installed from."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), flags=re.M))
    suite = release["VERSION_CODENAME"]
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages"]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return next([suite, site] for codename, part, site in map(str.split, rows) if (codename, part) == (suite, "main"))


def _pip_settings(folder: Path) -> tuple[Path, list[str]]:
    """This machine's pip settings as one file whose local paths begin with /host, and those paths."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    options, places = {}, set()
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        words = ast.literal_eval(value).split()
        for number, word in enumerate(words):
            place = word.removeprefix("file://")
            if place.startswith("/") and Path(place).exists():
                places.add(place)
                words[number] = word.replace(place, f"/host{place}")
        options.setdefault(name.rpartition(".")[2], " ".join(words))  # the environment comes first, and counts
    file = folder / "pip.conf"
    file.write_text(f"# {CANARY}\n[global]\n" + "".join(f"{k} = {v}\n" for k, v in options.items()), encoding="utf-8")
    # a simple index names its files relative to itself
    return file, sorted({str(Path(place).parent) if place.endswith("/simple") else place for place in places})
