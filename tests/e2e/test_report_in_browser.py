"""report.html in a real Chromium: no error in its console, its elements there, its audio playable, nothing asked of any network."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import composed, sound

from asr import run_report
from asr.runs import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PLANTED = '<script>console.error("planted")</script><img src=http://planted.example/x.png onerror=console.error("planted")>'
PLAY = """<script>
const loaded = [...document.querySelectorAll('audio')].map(audio => new Promise(done => {
  audio.onloadedmetadata = () => done(audio.duration.toFixed(2)); audio.onerror = () => done('error'); audio.preload = 'auto'; audio.load();
}));
Promise.all(loaded).then(all => { document.body.dataset.seconds = all.join(); console.error('all loaded'); });
new Image().src = 'http://planted.example/x.png';
</script></body>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH: docs/report.md")]


class Browser:
    """Opens a page; keeps its document as it then is, console lines, and the addresses that were asked for."""

    def __init__(self, page: Path, folder: Path) -> None:
        net = folder / "net.json"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]
        options += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net}", "--window-size=420,900", "--dump-dom"]
        done = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        self.document = done.stdout
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        self.asked = net.read_text()


@pytest.fixture
def page(run_dir, tmp_path):
    """The finished run's page, with words planted that would be markup, and an utterance that can be heard."""
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("model", "checkpoints", "tensorboard"))
    planted = {"id": PLANTED, "reference": f"{PLANTED} שלום 👋", "hypothesis": "one " * 200, "seconds": 0.5}
    with (folder / "predictions.jsonl").open("a") as file:
        file.write(json.dumps(planted) + "\n")
    row = {"id": PLANTED, "audio": str(sound(tmp_path / "a.wav", 0.5)), "seconds": 0.5, "text": "", "speaker": PLANTED}
    with (folder / "manifest" / "eval.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return run_report.write(Run.load(folder))


def test_the_page_opens_without_an_error_and_asks_for_nothing(page, tmp_path):
    browser = Browser(page, tmp_path)
    assert browser.console == []
    assert "planted.example" not in browser.asked
    for part in "rates facts data curves parts by-duration by-words by-speaker substitutions deletions insertions worst batches".split():
        assert f'id="{part}"' in browser.document, part
    assert browser.document.count('<svg role="img"') == 2
    assert "<script" not in browser.document
    assert "<img" not in browser.document
    assert "&lt;script&gt;" in browser.document


def test_its_audio_plays(page, tmp_path):
    """And what the other test looks for is found where it is: a script of the test's own is let in."""
    opened = tmp_path / "open.html"
    opened.write_text(re.sub(r"<meta http-equiv=.*?>", "", page.read_text()).replace("</body>", PLAY))
    browser = Browser(opened, tmp_path)
    (seconds,) = re.findall(r'data-seconds="([^"]*)"', browser.document)
    assert "0.50" in seconds.split(",")
    assert "error" not in seconds
    assert len(seconds.split(",")) == page.read_text().count("<audio ")
    assert any("all loaded" in line for line in browser.console)
    assert "planted.example" in browser.asked


def test_a_script_in_the_page_would_not_run(page, tmp_path):
    opened = tmp_path / "planted.html"
    opened.write_text(page.read_text().replace("</body>", PLAY))
    browser = Browser(opened, tmp_path)
    assert "data-seconds" not in browser.document.partition("<script>")[0]
    assert any("Content Security Policy" in line for line in browser.console)
    assert "planted.example" not in browser.asked


def test_a_run_that_failed_opens_too(tmp_path):
    run = Run.create(tmp_path / "r", composed(), command=[], overrides=[])
    run.finish(3, f"bad: {PLANTED}")
    browser = Browser(run_report.write(run), tmp_path)
    assert browser.console == []
    assert "before its first evaluation" in browser.document
    assert "planted.example" not in browser.asked
