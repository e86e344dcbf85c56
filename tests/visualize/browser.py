"""A headless Chromium, driven by its DevTools protocol."""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str:
    """The path of a Chromium; skips the test where there is none."""
    found = os.environ.get("PCATTN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} (Debian: apt-get install chromium)")
    return found


class Page:
    """One page: evaluate scripts, move the mouse, take pictures; `problems` and `requests` collect what it did."""

    def __init__(self, socket) -> None:
        self.socket = socket
        self.number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params):
        """A command of the protocol."""
        self.number += 1
        number = self.number
        await self.socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads((await self.socket.receive(timeout=120)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._notice(message)

    def _notice(self, message: dict) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def evaluate(self, script: str):
        """The value of an expression."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def settle(self) -> None:
        """Wait for two frames."""
        await self.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))")

    async def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def picture(self) -> np.ndarray:
        """What the page looks like, (H, W, 3)."""
        from matplotlib.image import imread

        data = (await self.call("Page.captureScreenshot", format="png"))["data"]
        return imread(io.BytesIO(base64.b64decode(data)))[..., :3]


def visit(url: str, folder: Path, actions) -> None:
    """Open a page and run `await actions(page)` on it."""
    command = [
        find_browser(),
        "--headless",
        "--no-sandbox",  # tests may run as root
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",  # WebGL without a GPU
        "--remote-debugging-port=0",
        "--window-size=1000,800",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        port = folder / "DevToolsActivePort"
        limit = time.monotonic() + 90
        while not port.exists() or not port.read_text().strip():
            if process.poll() is not None or time.monotonic() > limit:
                pytest.skip(f"{command[0]} did not start")
            time.sleep(0.1)
        asyncio.run(_visit(url, int(port.read_text().splitlines()[0]), actions))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _visit(url: str, port: int, actions) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            target = next(each for each in await answer.json() if each["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=1 << 27) as socket:
            page = Page(socket)
            for domain in ("Runtime", "Log", "Network", "Page"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=url)
            for _ in range(300):
                ready = await page.evaluate("document.readyState + location.href")
                if ready == f"complete{url}":
                    break
                await asyncio.sleep(0.1)
            await page.settle()
            await actions(page)
