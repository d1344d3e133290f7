"""A headless Chromium that a test talks to through two pipes, without a driver or another package."""

import base64
import json
import os
import subprocess
import tempfile
from pathlib import Path

OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run",
           "--disable-background-networking")

COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed")


class Browser:
    """One page of a browser; use it as a context. said: what the page wrote to the console, and what it failed at."""

    def __init__(self, program: str) -> None:
        self.program, self.count, self.rest = program, 0, b""
        self.said: list[str] = []
        self.asked: list[str] = []  # addresses that it wanted to load

    def __enter__(self) -> "Browser":
        to_read, self.to = os.pipe()
        self.back, to_write = os.pipe()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        started = f"exec {self.program} {' '.join(OPTIONS)} --user-data-dir={self.profile.name} 3<&{to_read} 4>&{to_write}"
        self.process = subprocess.Popen(["bash", "-c", started], pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.to)
        os.close(self.back)
        self.profile.cleanup()

    def call(self, method: str, **params: object) -> dict:
        """What the browser answers to a command of the DevTools protocol."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if method.partition(".")[0] != "Target":
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.event()).get("id") != message["id"]:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def event(self) -> dict:
        """The next message of the browser."""
        while b"\0" not in self.rest:
            part = os.read(self.back, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        one, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(one)
        if found.get("method") in COMPLAINTS:
            self.said.append(json.dumps(found["params"])[:500])
        if found.get("method") == "Network.requestWillBeSent":
            self.asked.append(found["params"]["request"]["url"])
        return found

    def show(self, page: Path, width: int, height: int, scheme: str = "light", scripts: bool = True) -> None:
        """Open a page at a size of the window, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=page.as_uri())
        while self.event().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> object:
        """What a script comes to, once it is settled."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
