"""What the container image installs, as a CycloneDX bill of materials, and what is known against it, as a report.

    python scripts/supply_chain.py TOOLS FOLDER       TOOLS: an environment with cyclonedx-bom and pip-audit

Writes FOLDER/sbom.json and FOLDER/audit.txt from the locks in docker/. Findings are told and fail nothing: they appear
without any change here. audit.txt says for how many packages the advisory database had an answer.
Exit code 1 only when the bill itself could not be made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).parents[1] / "docker"
LOCKS = ("requirements.lock", "requirements-cpu.lock")
PATIENCE = 300  # seconds for each of the two


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
    pinned = [line.rstrip(" \\") for line in lines_of(folder / "image.lock") if "==" in line]
    pins.write_text("\n".join(pinned) + "\n", encoding="utf-8")
    command = [str(tools / "bin" / "pip-audit"), "--requirement", str(pins), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner=off", "--timeout=15", "--format=json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        packages = json.loads(done.stdout or "{}").get("dependencies", [])
        errors = done.stderr
    except subprocess.TimeoutExpired:
        packages, errors = [], f"no answer in {PATIENCE} s\n"
    known = [package for package in packages if "skip_reason" not in package]
    findings = [
        f"{package['name']} {package['version']}: {finding['id']}, mended in {' '.join(finding['fix_versions']) or '-'}"
        for package in known
        for finding in package["vulns"]
    ]
    told = f"{len(findings)} findings; the advisory database knew {len(known)} of {len(lines_of(pins))} packages"
    if not known:
        told = "NOT checked: the advisory database answered for no package"
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    text = "\n".join([told, "", *findings, *skipped, errors])
    (folder / "audit.txt").write_text(text, encoding="utf-8")
    return f"{folder / 'audit.txt'}: {told}"


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


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
