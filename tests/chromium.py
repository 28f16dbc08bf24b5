"""A headless Chromium: what a page becomes in it, a picture of it, and real clicks and keys."""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in NAMES if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's key of an element's id
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "tab": "\ue004"}


def output(url: str, *flags: str) -> str:
    """What one run with these flags prints."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=5000"]
        done = subprocess.run(
            [*command, *flags, url], capture_output=True, text=True, timeout=60, check=True
        )
    return done.stdout


class Browser:
    """A session of the WebDriver protocol."""

    def __init__(self, address: str, profile: str):
        self._address = address
        options = {"binary": PROGRAM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/session/{made['sessionId']}"

    def _send(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        # No proxy: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Visits the page anew, with empty logs."""
        self._send("POST", "/url", {"url": "about:blank"})  # so that a new hash is a new visit
        self.logs("performance"), self.logs("browser")
        self._send("POST", "/url", {"url": url})

    def url(self) -> str:
        """The address now, with its hash."""
        return self._send("GET", "/url")

    def run(self, script: str):
        """The value of a JavaScript expression."""
        return self._send("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def text(self, selector: str) -> str:
        """The text of an element as a reader sees it."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def _find(self, selector: str) -> str:
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def click(self, selector: str) -> None:
        """Clicks the middle of an element."""
        self._send("POST", f"/element/{self._find(selector)}/click", {})

    def press(self, *keys: str) -> None:
        """Keys of KEYS, to what has the focus."""
        presses = [
            {"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._send(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": presses}]}
        )

    def point(self, selector: str, x: float, y: float) -> None:
        """Moves the mouse to x, y from the element's upper left corner, in pixels."""
        left, top = self.run(
            f"(e => (e.scrollIntoView({{block: 'center'}}), [e.getBoundingClientRect().left,"
            f" e.getBoundingClientRect().top]))(document.querySelector({json.dumps(selector)}))"
        )
        move = {"type": "pointerMove", "duration": 0, "x": round(left + x), "y": round(top + y)}
        self._send(
            "POST", "/actions", {"actions": [{"type": "pointer", "id": "m", "actions": [move]}]}
        )

    def resize(self, width: int, height: int) -> None:
        """Makes the window so large, in pixels."""
        self._send("POST", "/window/rect", {"width": width, "height": height})

    def logs(self, kind: str) -> list[dict]:
        """What was logged since the last call."""
        return self._send("POST", "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """Ends the session and its browser."""
        self._send("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser that ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            lines = iter(driver.stdout.readline, "")
            port = next(
                found[1] for line in lines if (found := re.search(r"on port (\d+)\.", line))
            )
            session = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield session
            finally:
                session.close()
        finally:
            driver.terminate()
            driver.wait(timeout=10)
            driver.stdout.close()


def address(path: Path, **hash: int) -> str:
    """The URL of a page, with what its hash chooses."""
    return f"{path.as_uri()}#{'&'.join(f'{name}={value}' for name, value in hash.items())}"
