from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from infra.errors import SourceError
from infra.store.commit import load_step
from tasks.context import StepContext
from tasks.recipe import Recipe
from tasks.report.html import render
from tasks.report.run import REPORT, contents
from tests.tasks import toy_run

SECTIONS = [
    *("drawings", "captions", "choices", "replies", "losses", "data", "ledger", "image-tokenizer", "text-tokenizer"),
    *("mixture", "pretrain", "finetune", "export", "time", "where"),
]


class Page(HTMLParser):
    """Ids, links, what the page would load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {k: v or "" for k, v in attrs}
        if tag in ("section", "header") and "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given and tag != "use":
            self.loads.append(given["href"])
        self.alts.append(given.get("alt", ""))
        if "src" in given:
            self.loads.append(given["src"])

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(toy: tuple[Path, Recipe]) -> str:
    context = StepContext(toy[1], str(toy[0]), "report", "test")
    return context.store().get(REPORT).decode()


def test_every_section_is_there_and_linked(html: str) -> None:
    page = Page(html)
    assert [i for i in page.ids if i != "top"] == SECTIONS
    assert sorted(link.removeprefix("#") for link in page.links) == sorted(["top", *SECTIONS])


def test_it_needs_nothing_beside_it(html: str) -> None:
    page = Page(html)
    assert page.loads
    assert all(source.startswith("data:") for source in page.loads)
    assert "script" not in page.tags
    assert not re.findall(r"@import|url\((?!#)", html)


def test_it_says_what_was_measured(toy: tuple[Path, Recipe], html: str) -> None:
    text = " ".join(Page(html).text.split())
    results = json.loads(StepContext(toy[1], str(toy[0]), "evaluate").store().get("results.json"))
    drawn = next(r for r in results if r["kind"] == "drawings" and not r["held_out"])
    assert f"{drawn['nearest']} of {drawn['asked']} nearest to what was asked for" in text
    choice = next(r for r in results if r["kind"] == "choices" and not r["held_out"])
    assert f"{choice['name']['share']:.1%}" in text
    assert "3.1e-06 in fp32" in text  # the export's difference, from its manifest
    assert "A red circle" in text
    assert "languagetokens a wordtokens a characterbytes a tokenmeasured on" in text
    assert "1 bad-json" in text
    assert "1 not-an-image" in text
    assert "closed" in text
    assert "open by" not in text


def test_what_was_drawn_while_training_is_set_in_a_strip(html: str) -> None:
    page = Page(html)
    text = " ".join(page.text.split())
    assert text.count("What it drew as it went on") == 1  # the toy's fine-tuning drew nothing
    assert "step 40step 80step 120held-out picture" in text
    assert [alt for alt in page.alts if alt.startswith("drawn after")] == [
        f"drawn after {step} steps" for _ in range(3) for step in (40, 80, 120)
    ]


def test_the_time_of_every_step_but_its_own(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "1 min 28 s of work in all" in text  # 3 + 4 + … + 13 s, see the toy's records


def test_equal_runs_give_equal_bytes(toy_context: StepContext, html: str) -> None:
    assert render(contents(toy_context)) == html
    manifest = load_step(toy_context.store())
    assert manifest is not None
    assert [f.name for f in manifest.files] == [REPORT]
    assert manifest.facts["headline"].endswith(REPORT)


def test_what_the_data_say_stays_text(toy_context: StepContext) -> None:
    evil = "<script>alert('x')</script><img src=http://example.com/x.png>"
    data: dict[str, Any] = contents(toy_context)
    data["captions"][0]["cells"][0]["caption"] = evil
    data["drawings"][0]["cells"][0]["name"] = evil + '"'
    data["replies"][0]["reply"] = [{"text": evil}]
    data["sources"][1]["samples"][0]["turns"][0]["pieces"] = [{"text": evil}]
    data["text_tokenizer"]["examples"] = [evil]
    page = Page(render(data))
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.loads)
    assert page.text.count(evil) == 5


def test_sources_that_are_gone_cost_their_samples_only(
    toy_context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: toy_run.ToySource, item: Any) -> Any:
        raise SourceError("words.txt: the disk is not mounted")

    toy_context.fingerprints
    monkeypatch.setattr(toy_run.ToySource, "read", gone)
    page = Page(render(contents(toy_context)))
    assert page.text.count("The source can no longer be read: words.txt: the disk is not mounted") == 4
    assert page.ids


@pytest.mark.integration
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path, html: str, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: this test looks at the report in a real browser")
    probe = """<script>addEventListener("load", () => {
      const broken = [...document.images].filter(i => !i.naturalWidth).length
      document.body.innerHTML = `<p id=probe>${document.documentElement.scrollWidth} ${innerWidth} ${broken}</p>`
    })</script></body>"""
    (tmp_path / "page.html").write_text(html.replace("</body>", probe), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    found = re.search(r'<p id="probe">(\d+) (\d+) (\d+)</p>', done.stdout)
    assert found, done.stderr[-2000:]
    scroll, inner, broken = map(int, found.groups())
    assert scroll <= inner
    assert broken == 0
