"""Debian's chromium, headless, driven over a pipe by its DevTools
protocol: what a reader sees of a page.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--lang=en",
    "--remote-debugging-pipe",
)
WAIT_S = 60


class Browser:
    """One chromium with one tab; `with Browser(folder) as browser`."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM, "ask for `browser.CHROMIUM` first"
        asks, self._write = os.pipe()
        self._read, answers = os.pipe()
        # it reads its descriptor 3 and writes to its 4
        wiring = f'exec {CHROMIUM} "$@" 3<&{asks} 4>&{answers}'
        self._child = subprocess.Popen(
            [
                "bash",
                "-c",
                wiring,
                "chromium",
                *FLAGS,
                f"--user-data-dir={folder / 'profile'}",
                "about:blank",
            ],
            pass_fds=(asks, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(asks)
        os.close(answers)
        self._ids = itertools.count(1)
        self._session: str | None = None
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = next(
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.terminate()
        self._child.wait(WAIT_S)
        os.close(self._write)
        os.close(self._read)

    def open(
        self,
        page: Path | str,
        *,
        dark: bool = False,
        width: int = 1280,
        height: int = 900,
        media: str = "",
    ) -> None:
        """Show a file or an address, and wait until it is loaded."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true of the page."""
        end = time.monotonic() + WAIT_S
        while not (found := self.ask(f"(found => found instanceof Node || found)({script})")):
            assert time.monotonic() < end, (
                f"{script} did not come true: {self.ask('document.body.innerText')}"
            )
            time.sleep(0.02)
        return found

    def type(self, text: str) -> None:
        """Enter a text where the focus is, as from a keyboard or the clipboard."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key such as Enter, Tab, Space or Escape, or that of a character."""
        named = {
            "Enter": (13, "\r"),
            "Tab": (9, ""),
            "Space": (32, " "),
            "Escape": (27, ""),
            "ArrowDown": (40, ""),
        }
        named |= {"ArrowLeft": (37, ""), "ArrowRight": (39, "")}
        code, text = named.get(key, (ord(key[0].upper()), key))
        known = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        modifiers = 8 if shift else 0
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, modifiers=modifiers, **known)
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **known)

    def image(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        """What is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    @property
    def requests(self) -> list[str]:
        """Everything that the page asked for since it was opened."""
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[str]:
        """Errors, warnings and messages in the console since the page was opened."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == number)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _until(self, wanted: Any) -> dict[str, Any]:
        """Take messages until one is wanted; events are kept."""
        end = time.monotonic() + WAIT_S
        while True:
            message, found, rest = self._rest.partition(b"\0")
            if not found:
                assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], (
                    "chromium is silent"
                )
                data = os.read(self._read, 1 << 20)
                assert data, "chromium has ended"
                self._rest += data
                continue
            self._rest = rest
            parsed = json.loads(message)
            if "method" in parsed:
                self.events.append(parsed)
            if wanted(parsed):
                return dict(parsed)
