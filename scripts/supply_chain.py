"""What the container image installs, as a CycloneDX bill of materials, and what is known against it, as a report.

    python scripts/supply_chain.py TOOLS FOLDER       TOOLS: an environment with cyclonedx-bom and pip-audit

Writes FOLDER/sbom.json and FOLDER/audit.txt from the locks in docker/. Findings are told and fail nothing: they appear
without any change here. Where the advisory database cannot be reached, audit.txt says that nothing was checked.
Exit code 1 only when the bill itself could not be made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).parents[1] / "docker"
LOCKS = ("requirements.lock", "requirements-cpu.lock")
PATIENCE = 120  # seconds for the database


def bill(tools: Path, folder: Path) -> str:
    """Write sbom.json; a sentence about it."""
    merged = folder / "image.lock"
    merged.write_text("".join((DOCKER / name).read_text(encoding="utf-8") for name in LOCKS), encoding="utf-8")
    file = folder / "sbom.json"
    command = [tools / "bin" / "cyclonedx-py", "requirements", merged, "--output-reproducible"]
    subprocess.run([*map(str, command), "--output-file", str(file)], check=True, timeout=PATIENCE)
    return f"{file}: {len(json.loads(file.read_text(encoding='utf-8'))['components'])} components"


def audit(tools: Path, folder: Path) -> str:
    """Write audit.txt; its last sentence. A hash cannot be asked for torch's CPU wheel, so pins alone are given."""
    pins = folder / "image.pins"
    lines = (folder / "image.lock").read_text(encoding="utf-8").splitlines()
    pins.write_text("\n".join(line.rstrip(" \\") for line in lines if "==" in line) + "\n", encoding="utf-8")
    command = [str(tools / "bin" / "pip-audit"), "--requirement", str(pins), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner=off", "--timeout=15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        text = done.stdout + done.stderr
        checked = done.returncode == 0 or "known vulnerabilit" in text
    except subprocess.TimeoutExpired:
        text, checked = "", False
    last = (text.strip().splitlines() or ["no answer"])[-1]
    unchecked = f"NOT checked, the advisory database gave no answer: {last}"
    told = "checked against the advisory database" if checked else unchecked
    (folder / "audit.txt").write_text(f"{told}\n\n{text}", encoding="utf-8")
    return f"{folder / 'audit.txt'}: {told}"


def main() -> int:
    tools, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(bill(tools, folder))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"no bill of materials: {error}", file=sys.stderr)
        return 1
    print(audit(tools, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
