"""A real headless Chromium, driven through its debugging pipe: no driver and no library stands between.

`python -m tests.pipeline.report.browser` installs Debian's chromium where it can (root and apt).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe"),
)
WAIT_S = 240.0  # a page draws in a second or two; a machine with ten other jobs takes its time


def chromium() -> str | None:
    """The program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `console` and `requests` hold what it said and what it asked for, since `open`."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.size, self.dark = (width, height), dark
        self.console: list[str] = []
        self.requests: list[str] = []
        self._id, self._rest = 0, b""

    def __enter__(self) -> Self:
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        reads, self.out = os.pipe()
        self.read, writes = os.pipe()

        # Chromium reads descriptor 3 and writes 4; dash knows no descriptors above 9
        start = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", str(chromium())]
        self.process = subprocess.Popen(
            [*start, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        targets = self._send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self._send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.out)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, page: Path) -> None:
        """Opens a report and waits until all of it is drawn."""
        self.console.clear()
        self.requests.clear()
        self.send("Page.navigate", url=page.absolute().as_uri())
        self.until("document.documentElement?.dataset.drawn || document.documentElement?.dataset.failed")

    def until(self, expression: str) -> Any:
        """Waits until an expression holds; returns its value."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if value := self.value(expression):
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{expression}; console: {self.console}")

    def value(self, expression: str) -> Any:
        """What an expression gives."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        height = self.value("document.documentElement.scrollHeight") if whole else self.size[1]
        clip = {"x": 0, "y": 0, "width": self.value("innerWidth"), "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._send(method, session=self.session, **params)

    def _send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._event(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.read], [], [], WAIT_S)
            assert ready, "Chromium does not answer"
            part = os.read(self.read, 2**20)
            assert part, "Chromium ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(about["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.console.append(f"{about['type']}: {about['args']}")
        elif event.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.console.append(str(about["entry"]))


def main() -> int:
    """Installs Chromium, or says why not."""
    if chromium() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        install = ["apt-get", "install", "-qy", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        subprocess.run(install, check=False, stdout=subprocess.DEVNULL)
    print(chromium() or "no chromium, and it takes root and apt to install one: the page's tests will be skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
