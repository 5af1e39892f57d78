"""A headless Chromium behind its driver: a page as a reader sees it, in W3C WebDriver's own words, without a library.

https://www.w3.org/TR/webdriver2/
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network: every name is unknown
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 300  # seconds, of a busy machine
WIDE, PHONE = (1200, 900), (390, 844)


class Browser:
    """One window."""

    def __init__(self, address: str, profile: Path, size: tuple[int, int]):
        self.address = address
        width, height = size
        emulated = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "mobile": size == PHONE}}
        options = {
            "binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"], "mobileEmulation": emulated,
        }  # fmt: skip
        limits = {"pageLoad": 1000 * PATIENCE, "script": 1000 * PATIENCE}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "timeouts": limits}
        wanted["goog:loggingPrefs"] = {"browser": "ALL"}
        self.session = ""
        self.session = self._call("session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def open(self, file: Path) -> None:
        self._call("url", {"url": file.resolve().as_uri()})

    def ask(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._call("execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """What the console has been told."""
        return [entry["message"] for entry in self._call("se/log", {"type": "browser"})]

    def whole_page(self, file: Path) -> None:
        """A picture of the page from its top to its end."""
        size = self.ask("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        found = self._call("goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": shot})
        file.write_bytes(base64.b64decode(found["data"]))

    def as_on_paper(self) -> None:
        """The rules of `@media print` from here on, once they are drawn: what was folded is skipped until then."""
        self._call("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}})
        self.ask("return new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn(true))))")

    def print_to(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._call("print", {"background": True})))

    def close(self) -> None:
        self._call("", method="DELETE")

    def _call(self, path: str, data: dict | None = None, method: str = "POST") -> Any:
        place = f"{self.address}/session/{self.session}/{path}" if self.session else f"{self.address}/{path}"
        body = json.dumps(data or {}).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(place.rstrip("/"), body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()[:400]}") from None


@contextmanager
def browser(folder: Path, size: tuple[int, int]) -> Iterator[Browser]:
    """A fresh one, its profile below `folder`; driver and browser end with it."""
    driver = subprocess.Popen(
        [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
    )
    try:
        assert driver.stdout is not None
        port = next(line.split("port ")[-1].strip(" .\n") for line in driver.stdout if "started success" in line)
        address = f"http://127.0.0.1:{port}"
        _wait_for(address)
        window = Browser(address, folder / f"profile-{size[0]}", size)
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()


def _wait_for(address: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{address}/status", timeout=5):
                return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
