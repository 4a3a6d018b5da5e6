from __future__ import annotations

import base64
import resource
import time
from encodings.aliases import aliases
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import Storage
from tasks.sources import open_source
from tasks.sources.base import BadRow, RawImage, RawSample, Segment, Source
from tasks.sources.config import SourceConfig
from tasks.sources.files import UnusableRow
from tasks.sources.html import MAX_DEPTH, decoded, pieces
from tasks.sources.html_text import HtmlOptions
from tasks.sources.pages import Shown, embedded, picture, placed
from tests.tasks.sources.reading import rows, samples


def html(folder: Path, path: str = ".", **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type="html", kind="interleaved", path=path, options=options), folder)


def text(page: str, **options: Any) -> str:
    """The page's content, pictures as ``[address]``."""
    return "".join(p if isinstance(p, str) else f"[{p.address}]" for p in pieces(page, HtmlOptions(**options)))


@pytest.mark.parametrize(
    ("page", "want"),
    [
        ("<h1>A</h1><p>b\n  c</p><h3>D</h3>e", "# A\n\nb c\n\n### D\n\ne"),
        ("<p>one<p>two <b>bold</b>,<i> x</i>", "one\n\ntwo bold, x"),
        ("<p>a<br>b</p>", "a\nb"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>d", "- a\n- b\n\n  - c\n\nd"),
        ("<ol start=3><li><p>a</p></li><li>b</ol>", "3. a\n\n4. b"),
        ("<dl><dt>term<dd>meaning</dl>", "term\nmeaning"),
        ("<table><tr><th>a<th>b<tr><td><p>c</p><p>d</p><td>e</table>f", "a | b\nc d | e\n\nf"),
        ("<pre>\n  x\n    y\n</pre><p>z", "  x\n    y\n\nz"),
        ("<p>run <code>a  b</code> now", "run a  b now"),
        ("<script>if (a < b) {}</script><style>p {}</style><nav>menu</nav><p>x<footer>foot", "x"),
        ("<p>a &amp; b &#233; &hellip; &lt;p&gt;", "a & b é … <p>"),
        ("a<img src='i.png' alt='alt'>b", "a[i.png]b"),
        ("<p>a</p><p><img src=i.png></p><p>b</p>", "a\n\n[i.png]\n\nb"),
        ("<header>site</header><main><p>x</p></main><div>more</div>", "x"),
        ("<div>site</div><article>x</article><article>y</article>", "x\n\ny"),
        ("<main></main><p>x", "x"),
        ("<title> T\n t </title><p>x", "# T t\n\nx"),
        ("<title>T</title><h1>H</h1>x", "# H\n\nx"),
        ("<title>Same</title><h2>Same</h2>x", "## Same\n\nx"),
        ("<title>T</title>", ""),
        ("", ""),
        ("no markup", "no markup"),
        ("<p hidden>a</p><div role=navigation>b</div><p style='Display: none'>c</p>d", "d"),
        ("<math><mi>x</mi><annotation>\\x</annotation></math><p>H<sub>2</sub>O", "x\n\nH2O"),
    ],
)
def test_the_text_in_reading_order(page: str, want: str) -> None:
    assert text(page) == want


def test_captions_and_what_a_site_adds() -> None:
    page = "<figure><img src=a alt='an apple'><figcaption>Figure 1</figcaption></figure><div class='x toc'>menu</div>z"
    assert text(page) == "[a]\n\nFigure 1\n\nmenu\n\nz"
    assert text(page, caption="alt") == "[a]\n\nan apple\n\nmenu\n\nz"
    assert text(page, caption="none", left_out=["toc"]) == "[a]\n\nz"


def test_which_address_a_picture_has() -> None:
    assert (
        text("<img data-src=a><img src='data:image/gif;base64,R0' data-src=b><img src=c data-src=d><img src>")
        == "[a][b][c]"
    )
    assert text("x<img src=count.gif width=1 height='1px'><img src=a width=1 height=20>") == "x[a]"
    page = "<head><base href='https://a.example/b/'></head><img src=x.png>"
    assert pieces(page)[-1] == Shown("x.png", "https://a.example/b/")


def test_xhtml_elements_that_close_themselves_swallow_nothing() -> None:
    assert text('<?xml version="1.0"?><html><head><title/><script src="a"/></head><body><p>x</p></body></html>') == "x"


@pytest.mark.parametrize(
    "data",
    [
        "é漢".encode(),
        "é漢".encode("utf-8-sig"),
        "é漢".encode("utf-16"),
        b'<meta charset="iso-8859-1">\xe9',
        b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">\xe9',
        b'<?xml version="1.0" encoding="iso-8859-1"?>\xe9',
        b'<meta charset="gb2312">' + "漢".encode("gb18030"),
        "<meta charset=us-ascii>é".encode(),
        "<meta charset=utf-16>é".encode(),
        "<meta charset=no-such>é".encode(),
    ],
)
def test_encodings(data: bytes) -> None:
    assert set(text(decoded(data))) & {"é", "漢"}


@pytest.mark.parametrize("data", [b"caf\xe9", b"<meta charset=utf-8>\xff"])
def test_bytes_that_are_no_text_cost_the_page(data: bytes) -> None:
    with pytest.raises(UnusableRow, match="not-utf-8"):
        decoded(data)


def outcome(data: bytes) -> str:
    """The page's text, or the class of what is wrong with it."""
    try:
        return text(decoded(data))
    except UnusableRow as e:
        return e.error


BOMB = "<!DOCTYPE html [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{n + 1} '&a{n};&a{n};&a{n};&a{n};&a{n};&a{n};&a{n};&a{n};'>" for n in range(20)
)


@pytest.mark.parametrize(
    "page",
    [
        BOMB + "]><html><body><p>&a20;</p></body></html>",
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><p>&e;</p>',
        "<div>" * 100_000,
        "<div>" * 100_000 + "</b>" * 100_000,
        "<b>" * 100_000 + "x" + "</b>" * 100_000,
        "<table><tr><td>" * 100_000,
        "<ul><li>" * 100_000,
        "<p " + " ".join(f"a{n}=1" for n in range(100_000)) + ">",
        "<!-- " * 100_000,
        "<p>" * 60_000,
        "<" * 60_000,
        "&" * 60_000,
        "<title/>" * 20_000,
        "<script " * 100_000,
    ],
    ids=lambda page: page[:12],
)
def test_hostile_pages_end_soon_and_small(page: str) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outcome(page.encode())
    assert found == "bad-markup" or "root:" not in found
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_depth_has_a_limit() -> None:
    assert text("<div>" * (MAX_DEPTH - 10) + "x") == "x"
    with pytest.raises(UnusableRow, match="bad-markup"):
        text("<div>" * 10 * MAX_DEPTH + "x")


@given(st.text(st.sampled_from("<>/pdivtablrhumgsc=\"' &;!-\0\n"), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read(page: str) -> None:
    pieces(page)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_a_page_or_a_bad_row(data: bytes) -> None:
    outcome(data)


@given(st.sampled_from(sorted(aliases)), st.binary(max_size=50))
@settings(deadline=None)
def test_any_declared_encoding(name: str, data: bytes) -> None:
    outcome(f"<meta charset={name}>".encode() + data)


# -- pictures of pages


def test_pictures_lie_beside_the_page_or_elsewhere(tmp_path: Path) -> None:
    for name in ("a b.png", "docs/x.png", "site/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path.parent / "secret.png").write_bytes(b"secret")
    storage = Storage(tmp_path)

    def found(address: str, base: str = "") -> tuple[bytes | None, str, str]:
        image = picture(storage, "docs/page.html", Shown(address, base), "site")
        return image.data, image.url, "" if image.data else image.error

    assert found("x.png") == (b"docs/x.png", "", "")
    assert found("./x.png?size=large#top") == (b"docs/x.png", "", "")
    assert found("../a%20b.png") == (b"a b.png", "", "")
    assert found("/y.png") == (b"site/y.png", "", "")
    assert found("z.png") == (None, "", "missing-image")
    assert found("https://a.example/x.png") == (None, "https://a.example/x.png", "not-downloaded")
    assert found("//a.example/x.png") == (None, "https://a.example/x.png", "not-downloaded")
    assert found("x.png", "https://a.example/b/") == (None, "https://a.example/b/x.png", "not-downloaded")
    assert found("../../secret.png")[2] == "path-escape"
    assert found("/../../secret.png")[2] == "path-escape"
    assert found("x" * 300)[2] == "bad-name"
    assert found("a%00b")[2] == "bad-name"
    assert found("http://[")[2] == "bad-name"
    assert found("file:///etc/passwd") == (None, "file:///etc/passwd", "not-downloaded")
    assert found("") == (None, "", "no-picture")


def test_embedded_pictures() -> None:
    data = bytes(range(256))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert embedded(uri) == RawImage("data:image/png;base64", data, error="bad-field")
    assert embedded("data:image/svg+xml,%3Csvg/%3E").data == b"<svg/>"
    assert embedded("data:image/png;base64,%%%").data is None
    assert embedded("data:,").data is None


def test_places_of_texts_and_pictures() -> None:
    image = RawImage("a", b"1")
    assert placed(["a", "b", image, image, "", "c"]) == (
        (Segment("ab"), Segment(image=0), Segment(image=1), Segment("c")),
        (image, image),
    )
    assert placed([]) == ((), ())


# -- sources


def test_pages_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.html", "b.HTM", "sub/c.xhtml", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<p>{name}<img src=i.png>", encoding="utf-8")
    (tmp_path / "i.png").write_bytes(b"picture")
    found = samples(html(tmp_path), target=1)
    assert [(s.key, s.row) for s in found] == [("a.html", 1), ("b.HTM", 2), ("sub/c.xhtml", 1)]
    assert [s.images[0].data for s in found] == [b"picture", b"picture", None]
    assert found[0].segments == (Segment("a.html"), Segment(image=0))
    (only,) = samples(html(tmp_path, "sub/c.xhtml"))
    assert only.key == "c.xhtml"


def test_every_page_of_the_debian_handbook(shared_data: Path) -> None:
    folder = shared_data / "interleaved" / "html_debian_handbook"
    found = rows(html(folder, left_out=["docnav", "#title"]))
    assert len(found) == len(list(folder.rglob("*.html")))
    assert not [r for r in found if isinstance(r, BadRow)]
    documents = {r.key: r for r in found if isinstance(r, RawSample)}
    shown = [i for d in documents.values() for i in d.images]
    here = [i for i in shown if not i.name.startswith("Common_Content")]
    assert here
    assert all(i.data for i in here), "every figure of the book itself is there"
    life = documents["sect.release-lifecycle.html"]
    flat = "".join("[picture]" if s.image is not None else s.text or "" for s in life.segments)
    flat = flat.replace("\u00a0", " ")
    assert "## 1.6. Lifecycle of a Release\n\nThe project will" in flat
    assert "[picture]\n\nFigure 1.2. Compilation of a package by the autobuilders\n\n" in flat
    assert "1. successful compilation on all officially supported architectures;\n" in flat
    shell = "".join(s.text or "" for s in documents["sect.virtualization.html"].segments)
    assert "\n# xen-create-image --hostname testxen" in shell
    assert "\nHostname       :  testxen\n" in shell
