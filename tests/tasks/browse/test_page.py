from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.errors import RecipeError, SourceError, StoreError
from tasks.addresses import addresses_of
from tasks.browse.contents import chosen_parts
from tasks.browse.page import browse
from tasks.recipe import Recipe
from tests.tasks import data_run, toy_run
from tests.tasks.data_run import DataRun

Toy = tuple[Path, Recipe]


class Page(HTMLParser):
    """Tags, ids, what the page would load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {k: v or "" for k, v in attrs}
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given:
            self.loads.append(given["href"])
        self.loads += [given["src"]] if "src" in given else []

    def handle_data(self, data: str) -> None:
        self.text += data


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    return data_run.make(tmp_path_factory.mktemp("browse"), "tokenize")


@pytest.fixture(scope="module")
def html(toy: Toy) -> str:
    return browse(addresses_of(toy[0]))


def test_it_shows_a_part_of_every_source(html: str) -> None:
    page = Page(html)
    assert page.ids == ["top", "ledger", "shapes-000000", "words-000000", "stories-000000", "talks-000000"]
    assert [link.removeprefix("#") for link in page.links] == page.ids[1:]
    assert "12 of 12 samples" in page.text
    assert "Closed in every part, and from step to step." in page.text
    assert "red circle" in page.text
    assert "circle rot" in page.text
    assert "half-0 row 0, licence CC0" in page.text
    assert "held out" in page.text
    assert "Here is a red circle:" in page.text
    assert "What is this?" in page.text


def test_original_and_decoded_stand_beside_each_other(html: str) -> None:
    images = [i for i in Page(html).loads if i.startswith("data:image/webp")]
    original, decoded = picture_of(images[0]), picture_of(images[1])
    assert np.array_equal(np.asarray(original), np.asarray(Image.open(io.BytesIO(toy_run.picture("red", "circle")))))
    assert decoded.size == (16, 16), "as the image tokenizer's decoder makes it"
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", html)
    assert captions[:2] == ["original, 24×24", "its codes, decoded"]
    assert len(captions) == len(images)


def test_it_needs_nothing_beside_it(html: str) -> None:
    page = Page(html)
    assert all(source.startswith("data:") for source in page.loads)
    assert "script" not in page.tags
    assert not re.findall(r"@import|url\(", html)


def test_what_was_left_out_and_why(data: DataRun) -> None:
    addresses = addresses_of(data.workdir)
    page = Page(browse(addresses, part="photos-000000"))
    assert "not-an-image, 1 row" in page.text
    assert "list.jsonl row 6" in page.text
    assert "6e 6f 6e 73 65 6e 73 65 nonsense" in page.text, "the first bytes of what is no picture"
    assert "missing-image, 1 row" in page.text
    assert "calumma retry would try again" in page.text
    page = Page(browse(addresses, part="photos-000001"))
    assert "min-side, 1 filtered by scan" in page.text
    assert "exact, 1 left out by select" in page.text
    assert re.search(r"the same as list\.jsonl@\d+ , which stays|the same as list\.jsonl@\d+, which stays", page.text)


def test_a_part_is_chosen_where_most_was_left_out(data: DataRun) -> None:
    parts = chosen_parts(addresses_of(data.workdir), "encode", None)
    assert parts[0] in ("photos-000000", "photos-000001")
    assert parts[1] == "texts-000000"
    with pytest.raises(StoreError, match="no such part of encode"):
        browse(addresses_of(data.workdir), part="photos-000099")
    with pytest.raises(RecipeError, match="scan or encode"):
        browse(addresses_of(data.workdir), step="mix")


def test_captions_stay_text(data: DataRun) -> None:
    html = browse(addresses_of(data.workdir), part="photos-000002")
    page = Page(html)
    assert data_run.CAPTION in page.text
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(" in html


def test_what_the_data_say_is_escaped_everywhere(data: DataRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.browse import page

    evil = "\"'><script>alert(1)</script><img src=http://example.com/x.png>"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k in ("uri", "state") else poison(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [poison(v) for v in value]
        return evil if isinstance(value, str) and value else value

    made: list[dict[str, Any]] = []
    render = page.render

    def keep(data: dict[str, Any]) -> str:
        made.append(data)
        return ""

    monkeypatch.setattr(page, "render", keep)
    page.browse(addresses_of(data.workdir), part="photos-000001")
    found = Page(render(poison(made[0])))
    assert "script" not in found.tags
    assert all(source.startswith("data:") for source in found.loads)
    assert found.text.count(evil) > 30


def test_scan_alone_can_be_looked_at(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "scan")
    page = Page(browse(addresses_of(run.workdir), step="scan", limit=4))
    assert "2 of 5 samples" in page.text
    assert "its codes, decoded" not in page.text
    assert "red-circle" in page.text, "captions come from the source"
    with pytest.raises(StoreError, match="step encode has no part yet"):
        browse(addresses_of(run.workdir))


def test_a_source_that_is_gone_costs_the_originals_only(data: DataRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.browse import originals

    def gone(*args: Any) -> Any:
        raise SourceError("the disk is not mounted")

    addresses = addresses_of(data.workdir)
    monkeypatch.setattr(originals, "open_source", gone)
    page = Page(browse(addresses))
    assert page.text.count("The originals cannot be shown: the disk is not mounted") == 2
    assert "not read" in page.text
    assert "its codes, decoded" in page.text
    assert "list.jsonl row 1" in page.text


@pytest.mark.integration
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path, html: str, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: this test looks at the page in a real browser")
    # In a frame, which can be as narrow as a phone; a window cannot. Its load event waits for every picture.
    inner = 400 if width == 500 else width
    page = escape(html.replace(' loading="lazy"', ""))
    probe = """<script>addEventListener("load", () => {
      const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement
      const broken = [...inside.images].filter(i => !i.naturalWidth).length
      document.body.innerHTML = `<p id=probe>${root.scrollWidth} ${inside.defaultView.innerWidth} ${broken}</p>`
    })</script>"""
    frame = f'<body style="margin:0"><iframe srcdoc="{page}" width="{inner}" height="800" style="border:0"></iframe>'
    (tmp_path / "frame.html").write_text(f"{frame}{probe}", encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    found = re.search(r'<p id="probe">(\d+) (\d+) (\d+)</p>', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-1500:]
    scroll, wide, broken = map(int, found.groups())
    assert wide == inner
    assert scroll <= wide
    assert broken == 0
