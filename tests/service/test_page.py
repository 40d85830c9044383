"""The service's pages in a real browser: what is loaded, and how it started, drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import ClassVar

import pytest

from helpers import ROOT
from helpers.serving import Process, ask
from image_analyzer.service import _page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dump(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's document after its scripts ran."""
    if BROWSER is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--virtual-time-budget=5000",
         f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--dump-dom", url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def shown(running: Process, tmp_path_factory: pytest.TempPathFactory) -> str:
    return dump(running.url + "/", tmp_path_factory)


def test_it_says_that_every_model_is_ready(shown: str) -> None:
    state = re.search(r'<p id="state"[^>]*>(.*?)</p>', shown)
    assert state
    assert re.fullmatch(
        r"ready: caption mapped in [\d.]+ s, florence mapped in [\d.]+ s, ocr mapped in [\d.]+ s", state[1]
    )


def test_it_draws_a_row_for_each_span(running: Process, shown: str) -> None:
    table = shown.partition('<table id="timeline">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>[\d.]+ s</td><td class=\"bar\"><i", table)
    spans = ask(running.url, "/startup")[1]["spans"]
    assert len(spans) == table.count("<tr>")
    assert rows == [(span["name"], span["model"] or "") for span in spans]


def test_a_browser_draws_how_it_started(running: Process, tmp_path_factory: pytest.TempPathFactory) -> None:
    page = dump(running.url + "/startup", tmp_path_factory)
    startup = ask(running.url, "/startup")[1]
    assert re.search(r'<p class="headline">ready after [\d.]+ s</p>', page)
    rows = re.findall(r"<title>(.*?): ([\d.]+) s</title></rect>", page)
    long = [span for span in startup["spans"] if span["end"] - span["start"] >= 0.005]
    assert rows == [(" ".join(filter(None, (span["model"], span["name"]))), f"{span['end'] - span['start']:.3f}")
                    for span in long]  # fmt: skip
    for name, model in startup["models"].items():
        assert f"<tr><th>{name}</th><td>ready</td><td>mapped</td><td>{model['seconds']:.3f}</td>" in page


def test_it_asks_for_nothing_outside_itself() -> None:
    """A strict network, or none: no font, script or picture of another host."""
    page = _page().body.decode()
    assert re.findall(r"(?:https?:)?//[\w.-]+", page) == []

    class Checker(HTMLParser):
        found: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found.extend(value for name, value in attributes if name in ("src", "href") and value)

    checker = Checker()
    checker.feed(page)
    assert checker.found == []


def test_it_is_one_file_of_the_package() -> None:
    assert _page().body == (ROOT / "service" / "image_analyzer" / "page.html").read_bytes()
