from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sources import open_source
from tasks.sources.base import BadRow, RawSample, Segment, Source
from tasks.sources.config import SourceConfig
from tasks.sources.markdown import MarkdownOptions, pieces
from tasks.sources.pages import Shown
from tests.tasks.sources.reading import rows, samples


def markdown(folder: Path, path: str = ".", **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type="markdown", kind="interleaved", path=path, options=options), folder)


def text(source: str, **options: Any) -> str:
    """The document, pictures as ``«address»``."""
    made = pieces(source, MarkdownOptions(**options))
    return "".join(p if isinstance(p, str) else f"«{p.address}»" for p in made)


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("a ![alt](x.png) b\n", "a «x.png» b\n"),
        ('![a](x.png "title")![b](<y z.png>)', "«x.png»«y%20z.png»"),
        ("![a][r], ![r], ![r][]\n\n[r]: x.png 'title'\n", "«x.png», «x.png», «x.png»\n\n[r]: x.png 'title'\n"),
        ("[![a](x.png)](https://a.example) [![b](y) c](d)", "«x.png» [«y» c](d)"),
        ("![an *emphasised* [link](u) ![inner](v)](x.png)", "«x.png»"),
        ("# Head ![a](x) #\n\nTitle ![b](y)\n===\n", "# Head «x» #\n\nTitle «y»\n===\n"),
        ("> quote ![a](x)\n> > deeper\n> ![b\n> b](y)\n", "> quote «x»\n> > deeper\n> «y»\n"),
        ("- a\n\n  ![x](x)\n  1. b ![y](y)\n", "- a\n\n  «x»\n  1. b «y»\n"),
        ("| a | ![x](x) |\n|---|---|\n| ![x](x) | `c` ![y](y) |\n", "| a | «x» |\n|---|---|\n| «x» | `c` «y» |\n"),
        ("`![a](x)` ![a](x)", "`![a](x)` «x»"),
        ("```\n![a](x)\n```\n\n    ![b](y)\n", "```\n![a](x)\n```\n\n    ![b](y)\n"),
        ("\\![a](x) !\\[b](y)", "\\![a](x) !\\[b](y)"),
        ("![no such][r]", "![no such][r]"),
        ('a <img src="x.png" alt="b"> c <IMG SRC=y.png/>', "a «x.png» c «y.png/»"),
        ("a <img alt=b data-src=x> c", "a <img alt=b data-src=x> c"),
        ('<p align="center">\n <img src="x.png"\n  width=3>\n</p>\n', '<p align="center">\n «x.png»\n</p>\n'),
        ("<!-- <img src=x> -->\n\n<p>", "<!-- <img src=x> -->\n\n<p>"),
        ("<div><!-- <img src=y> --><img src=z></div>", "<div><!-- <img src=y> -->«z»</div>"),
        ("a <img src='x&amp;y.png'>", "a «x&y.png»"),
        ("|a|b|\n|-|-|\n|![c\\|d](x)|e|\n", "|a|b|\n|-|-|\n|«x»|e|\n"),
        (">\t![a](x)\n>\t ![a](x)\n\n-\t![b](y)\n\n\t![b](y)\n", ">\t«x»\n>\t «x»\n\n-\t«y»\n\n\t«y»\n"),
        ("", ""),
        ("no picture\r\nat all\r\n", "no picture\nat all\n"),
    ],
)  # fmt: skip
def test_pictures_are_taken_out_and_the_rest_stays_as_written(source: str, want: str) -> None:
    assert text(source) == want


def test_front_matter() -> None:
    page = "---\ntitle: A title\ntags: [a]\n---\n\nText ![x](x)\n"
    assert text(page) == "# A title\n\nText «x»\n"
    assert text(page, title=False) == "Text «x»\n"
    assert text(page.replace("Text", "# Head")) == "# Head «x»\n"
    assert text("---\n---\nText") == "Text"
    for kept in (
        "---\nprose between two rules\n---\nText",
        "---\n: [\n---\nText",
        "---\nno end",
        "text\n---\na: b\n---\n",
    ):
        assert text(kept) == kept
    laughs = "---\na0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]\n" for n in range(30)) + "---\nText"
    assert text(laughs) == "Text"
    assert text("---\na: " + "[" * 1_000 + "\n---\nText").endswith("Text")


PARTS = st.sampled_from(
    [
        *("![a](x)", "![b][r]", "<img src=y>", "[r]: z\n", "[", "]", "(", ")", "!", "`", "|", "*", "\\", "&amp;"),
        *("\n", "\n\n", "\t", "> ", "- ", "1. ", "    ", "# ", "***\n", "```\n", "| a | b |\n|-|-|\n"),
        *("<div>", "</div>\n", "<!--", "-->", "word ", "é "),
    ]
)


@given(st.lists(PARTS, max_size=40).map("".join))
@settings(max_examples=400, deadline=None)
def test_nothing_but_pictures_is_lost(source: str) -> None:
    """The texts are stretches of the source, in order, from its start to its end; what is between them is markup."""
    made = pieces(source)
    texts = [p for p in made if isinstance(p, str)]
    assert source.startswith(texts[0])
    assert source.endswith(texts[-1])
    position = 0
    for text in texts:
        position = source.index(text, position) + len(text)
    assert len(made) - len(texts) <= len(re.findall(r"!\[|<img", source))
    assert {p.address for p in made if isinstance(p, Shown)} <= {"x", "y", "z"}


@given(st.lists(PARTS.filter(lambda p: "![" not in p and "img" not in p), max_size=40).map("".join))
@settings(max_examples=200, deadline=None)
def test_a_text_without_pictures_is_kept_to_the_letter(source: str) -> None:
    made = pieces(source)
    if not any(isinstance(p, Shown) for p in made):
        assert "".join(p for p in made if isinstance(p, str)) == source


@pytest.mark.parametrize(
    "piece",
    [
        *("![", "[", "> ", "- ", "*a ", "![a](", "<img '\"", "<div>", "[a]: b\n", "a\n", "`", "|a", "\\", "![a](x) "),
        *("![a](x)\n", "<p>\n\n", "<p><img src=a>\n\n", "<p><!-- -->\n\n", "<!-- <img src=a>\n"),
    ],
)
def test_hostile_files_end_soon(piece: str) -> None:
    start = time.process_time()
    pieces(piece * 5_000)
    assert time.process_time() - start < 20


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.md", "sub/b.markdown", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("![p](/i.png) ![q](none.png) ![r](https://a.example/i.png)", encoding="utf-8")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "i.png").write_bytes(b"picture")
    found = samples(markdown(tmp_path, site="site"))
    assert sorted(s.key for s in found) == ["a.md", "sub/b.markdown"]
    for sample in found:
        assert [(i.data, i.url) for i in sample.images] == [
            (b"picture", ""),
            (None, ""),
            (None, "https://a.example/i.png"),
        ]
        assert sample.segments == (
            Segment(image=0), Segment(" "), Segment(image=1), Segment(" "), Segment(image=2),
        )  # fmt: skip


def test_every_markdown_file_of_the_shared_data(shared_data: Path) -> None:
    folder = shared_data / "interleaved" / "markdown_deepspeed"
    found = rows(markdown(folder, site="docs"))
    assert len(found) == len(list(folder.rglob("*.md"))) == 18
    assert not [r for r in found if isinstance(r, BadRow)]
    for sample in found:
        assert isinstance(sample, RawSample)
        kept = "".join(s.text or "" for s in sample.segments)
        written = (folder / sample.key).read_text("utf-8")
        assert sample.images, f"{sample.key} shows pictures"
        outside = re.sub(r"```.*?```|`[^`]*`", "", kept, flags=re.DOTALL)
        assert not re.search(r"!\[[^\]]*\]\(|<img\b", outside), f"{sample.key} keeps a picture's markup"
        words = set(re.findall(r"\w{4,}", kept))
        assert words <= set(re.findall(r"\w{4,}", written)), "nothing is added but the front matter's title"
        assert len(kept) > 0.85 * len(written)
    images = [i for s in found if isinstance(s, RawSample) for i in s.images]
    missing = [i.name.rpartition("/")[2] for i in images if i.data is None]
    assert len(images) == 107
    assert "hero1.png" in missing
    assert len(missing) < 20, "links that dangle in the data; the others are found, those that start with / as well"
