"""The report in a headless browser: no request, no error on the console."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def looked_at(url: str, folder: Path) -> tuple[list[str], str]:
    """What a headless browser asks the network for, and what it says on its console."""
    log = folder / "net.json"
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # what the browser asks for itself is not sent
    found = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            nowhere,
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--v=0",
            f"--log-net-log={log}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "</html>" in found.stdout
    text = log.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except ValueError:
        record = json.loads(text.rstrip().rstrip(",") + "]}")  # the browser may end before it closes the list
    kind = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [
        event["params"] for event in record["events"] if event["type"] == kind and "url" in event.get("params", {})
    ]
    console = "\n".join(line for line in found.stderr.splitlines() if "CONSOLE" in line)
    return [each["url"] for each in asked if each["initiator"] != "not an origin"], console  # none: the browser itself


@pytest.fixture
def server():
    """A web server on the loopback interface; its address, and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
def test_a_browser_shows_it_without_a_request_or_an_error(larger_page, tmp_path, server):
    assert looked_at(larger_page.as_uri(), tmp_path) == ([], "")

    address, asked = server  # the check itself: a page that does both is seen
    bad = tmp_path / "bad.html"
    bad.write_text(
        f"<!doctype html><html><body><img src='{address}/x.png'><img src='http://elsewhere.invalid/y.png'>"
        "<script>console.error('so')</script></body></html>"
    )
    requests, console = looked_at(bad.as_uri(), tmp_path / "second")
    assert sorted(requests) == [f"{address}/x.png", "http://elsewhere.invalid/y.png"]
    assert asked == ["/x.png"]
    assert "so" in console
