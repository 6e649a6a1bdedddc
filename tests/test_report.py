"""The report: what it says of a real run, that it is well-formed and self-contained, and how a browser takes it."""

import json
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import write_config

from diverseevol_fast.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = '<script>console.log(7)</script><img src="http://127.0.0.1:9/x">'
VOID = {"meta", "link", "br", "img", "hr", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """Elements that are open, what is fetched from elsewhere, and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.fetched, self.texts, self.images = [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.images += tag == "svg" or tag == "img"
        for name in ("src", "srcset", "data", "href", "xlink:href"):
            target = given.get(name) or ""
            if name in given and not (tag == "a" and name == "href") and not target.startswith(("data:", "#")):
                self.fetched.append((tag, target))
        if tag == "script" or any(name.startswith("on") for name in given):
            self.fetched.append((tag, "script"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory, rows, tiny_model):
    """Two finished runs over data with markup in it: K-Center and random."""
    folder = tmp_path_factory.mktemp("report")
    changed = [row | {"instruction": f"{NASTY} {row['instruction']} \U0001f98a 漢字"} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    settings = {
        "full_data_path": str(folder / "rows.jsonl"), "model_name_or_path": str(tiny_model), "model_max_length": 256,
        "val_set_size": 10, "init_label_num": 6, "n_round": 2, "n_query": 5,
        "train_args": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    for name, schedule in (("kc", "KCenterSampling"), ("rnd", "RandomSampling")):
        config = write_config(folder, settings | {"evol_schedule_name": schedule, "output_dir": str(folder / name)})
        assert main(["run", str(config), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    output = made / "page.html"
    assert main(["report", str(made / "kc"), str(made / "rnd"), "--output", str(output), "--quiet"]) == 0
    return output


def test_the_page_says_what_the_runs_found(made, page):
    text = " ".join(Page(page.read_text(encoding="utf-8")).texts)
    for name in ("kc", "rnd"):
        for r in range(3):
            metrics = json.loads((made / name / f"state/rd_{r}/metrics.json").read_text())
            assert f"{metrics['train']['held_out_loss']:.4g}" in text
    for word in ("KCenterSampling", "RandomSampling", "Vendi Score", "overing radius", "random subsets", "seed"):
        assert word in text
    assert "best" in text
    assert "chosen on the" in text  # the best round is chosen by what it is judged by


def test_the_page_is_well_formed_and_fetches_nothing(page):
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.fetched == []
    assert parsed.images >= 5
    assert "@import" not in text
    assert "url(http" not in text
    assert "<script" not in text
    assert NASTY[:30] in "".join(parsed.texts)  # shown, not run
    assert len(text) < 3_000_000
    pngs = list((page.parent / "page_files").glob("*.png"))
    assert len(pngs) >= 5
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pngs)


def test_the_same_runs_make_the_same_numbers_again(made, page):
    before = [word for word in "".join(Page(page.read_text(encoding="utf-8")).texts).split() if "." in word]
    again = made / "again.html"
    assert main(["report", str(made / "kc"), str(made / "rnd"), "--output", str(again), "--quiet"]) == 0
    assert [word for word in "".join(Page(again.read_text(encoding="utf-8")).texts).split() if "." in word] == before


def test_judgements_join_their_rounds(made, tmp_path, shared_data):
    judged = made / "judged" / "kc"
    judged.mkdir(parents=True, exist_ok=True)
    source = shared_data / "judgements" / "vicuna_kc_dolly_initRAND100_rd_6_vs_chat.jsonl"
    shutil.copy(source, judged / "rd_1_vs_chat.jsonl")
    output = tmp_path / "r.html"
    arguments = [
        "report",
        str(made / "kc"),
        "--judgements",
        str(judged / "rd_1_vs_chat.jsonl"),
        "--output",
        str(output),
    ]
    assert main([*arguments, "--quiet"]) == 0
    text = " ".join(Page(output.read_text(encoding="utf-8")).texts)
    assert "79.69" in text
    assert "Relative Score" in text


def test_mistakes(made, tmp_path, capsys):
    for arguments, words in (
        ([str(tmp_path)], "expected the folder of a run"),
        ([str(made / "kc"), "--output", str(tmp_path / "x.pdf")], "expected a name that ends in .html"),
        ([str(made / "kc"), str(made / "kc")], "kc"),
        ([str(made / "kc"), "--judgements", str(tmp_path / "other" / "rd_1.jsonl")], "rd_1.jsonl"),
    ):
        assert main(["report", *arguments, "--quiet"]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def looked_at(url: str, folder: Path) -> tuple[list[str], str]:
    """What a headless browser asks the network for, and what it says on its console."""
    log = folder / "net.json"
    found = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", f"--log-net-log={log}",
         "--virtual-time-budget=3000", "--dump-dom", url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "</html>" in found.stdout
    text = log.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except ValueError:
        record = json.loads(text.rstrip().rstrip(",") + "]}")  # the browser may end before it closes the list
    asked = [event["params"]["url"] for event in record["events"] if "url" in event.get("params", {})]
    console = "\n".join(line for line in found.stderr.splitlines() if "CONSOLE" in line)
    return sorted({address for address in asked if address.startswith(("http://127", "http://loc"))}), console


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
def test_a_browser_shows_it_without_a_request_or_an_error(page, tmp_path, server):
    assert looked_at(page.as_uri(), tmp_path) == ([], "")

    address, asked = server  # the check itself: a page that does both is seen
    bad = tmp_path / "bad.html"
    bad.write_text(
        f"<!doctype html><html><body><img src='{address}/x.png'><script>console.error('so')</script></body></html>"
    )
    requests, console = looked_at(bad.as_uri(), tmp_path / "second")
    assert f"{address}/x.png" in requests
    assert asked == ["/x.png"]
    assert "so" in console
