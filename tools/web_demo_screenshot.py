"""Speaks a recording to simulstream's web demo in a real browser and takes a picture of what it shows.

    python tools/web_demo_screenshot.py --webdemo simulstream/webdemo --server server.yaml \
        --processor speech_processor.yaml --wav talk.wav --output demo.png

Needs Chromium and simulstream (``pip install simulstream``; the folder ``webdemo`` is in its repository only).
"""

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import soundfile
import yaml
from websockets.asyncio.client import ClientConnection, connect

HTTP_PORT, DEBUG_PORT = 8094, 9229


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webdemo", type=Path, required=True, help="Folder webdemo of simulstream's repository")
    parser.add_argument("--server", type=Path, required=True, help="simulstream's server.yaml")
    parser.add_argument("--processor", type=Path, required=True, help="simulstream's speech processor YAML")
    parser.add_argument("--wav", type=Path, required=True, help="What the microphone hears, again and again")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--chromium", default="chromium", help="The browser")
    return parser


def start_all(args: argparse.Namespace, profile: str) -> list[subprocess.Popen]:
    """The speech server, the web server and the browser; each in a process."""
    options = ["--headless=new", "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    options += [f"--use-file-for-fake-audio-capture={args.wav.resolve()}", f"--remote-debugging-port={DEBUG_PORT}"]
    options += [f"--user-data-dir={profile}", "--window-size=900,700", "--autoplay-policy=no-user-gesture-required"]
    commands = [
        [sys.executable, "-m", "simulstream.server.websocket_server", "--server-config", str(args.server),
         "--speech-processor-config", str(args.processor)],
        [sys.executable, "-m", "simulstream.server.http_server", "--config", str(args.server),
         "--directory", str(args.webdemo), "--port", str(HTTP_PORT)],
        [args.chromium, *options, "about:blank"],
    ]  # fmt: skip
    return [subprocess.Popen(command) for command in commands]


def wait_for(url: str, seconds: float = 180) -> bytes:
    """The content of a page, as soon as somebody serves it."""
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url).read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


class Page:
    """A tab of the browser."""

    def __init__(self, socket: ClientConnection):
        self.socket, self.last = socket, 0

    async def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the browser for something."""
        self.last += 1
        await self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            answer = json.loads(await self.socket.recv())
            if answer.get("id") == self.last:
                return answer["result"]

    async def run(self, script: str) -> Any:
        """The value of a line of JavaScript."""
        return (await self("Runtime.evaluate", expression=script))["result"].get("value")


async def speak(args: argparse.Namespace) -> str:
    """Opens the page, lets the microphone hear the recording, takes the picture; what the page then says."""
    config = yaml.safe_load(args.server.read_text("utf-8"))
    await speech_server(f"ws://{config['hostname']}:{config['port']}")
    tabs = json.loads(wait_for(f"http://localhost:{DEBUG_PORT}/json"))
    tab = next(tab for tab in tabs if tab["type"] == "page")
    async with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
        page = Page(socket)
        # The page takes its YAML reader from the network; what it would read is put in its place.
        reader = f"window.jsyaml = {{load: () => ({json.dumps(config)})}};"
        await page("Page.enable")
        await page("Page.addScriptToEvaluateOnNewDocument", source=reader)
        await page("Page.navigate", url=f"http://localhost:{HTTP_PORT}/index.html")
        await asyncio.sleep(5)
        await page.run("document.getElementById('startBtn').click()")
        await asyncio.sleep(soundfile.info(args.wav).duration + 3)
        text = await page.run("document.getElementById('transcript-text').textContent")
        picture = await page("Page.captureScreenshot", format="png")
        args.output.write_bytes(base64.b64decode(picture["data"]))
        await page.run("document.getElementById('stopBtn').click()")
        await asyncio.sleep(2)
    return text


async def speech_server(url: str, seconds: float = 180) -> None:
    """Waits until the speech server has loaded its model."""
    end = time.monotonic() + seconds
    while True:
        try:
            async with connect(url):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.5)


def main() -> None:
    """Entry point."""
    args = get_parser().parse_args()
    with tempfile.TemporaryDirectory() as profile:
        processes = start_all(args, profile)
        try:
            wait_for(f"http://localhost:{HTTP_PORT}/index.html")
            print(asyncio.run(speak(args)))
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


if __name__ == "__main__":
    main()
