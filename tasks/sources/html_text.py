"""The text and pictures of an HTML page in reading order, from a parser's events."""

from __future__ import annotations

import re
from typing import Literal

from tasks.sources.pages import PageOptions, Shown


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LEFT_OUT = _names(
    "script style nav footer noscript template svg iframe object embed audio video canvas map select textarea button "
    "input datalist dialog annotation annotation-xml"
)
_ROLES = _names("navigation contentinfo search banner")
_BLOCKS = _names(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure form header "
    "hgroup hr li main ol p pre section summary table tbody tfoot thead tr ul"
)
_CLOSE = _names("li dd tr")
"""Blocks that follow one another without an empty line."""
_DOT = ("0", "1")
"""Width and height in pixels of pictures that only count who looks at a page."""
_HEADINGS = {f"h{n}": "#" * n + " " for n in range(1, 7)}
_WHITE = re.compile(r"[ \t\n\r\f]+")


class HtmlOptions(PageOptions):
    """Options of type ``html``."""

    caption: Literal["figcaption", "alt", "none"] = "figcaption"
    """What is kept of a picture's own texts: the figure's caption where the page has it, or the alternative text as a
    paragraph behind the picture."""
    title: bool = True
    """The page's ``<title>`` is written first as a heading unless a heading of the first level or the same
    words is there."""
    left_out: tuple[str, ...] = ()
    """Elements that are left out too, a site's own furniture: classes (``docnav``) and ids (``#title``)."""


class PageText:
    """What the parser tells its events to: keeps text and pictures, and the breaks between them."""

    def __init__(self, options: HtmlOptions) -> None:
        self.depth = 0
        self._options = options
        self._skipped = 0  # elements open since one that is left out
        self._main = 0  # elements open since one that is the main part
        self._kept = 0  # open elements that keep their white space
        self._cells: list[bool] = []  # for each open table: is a cell of its open row begun
        self._lists: list[int | None] = []  # for each open list: the next number, None without numbers
        self._gap = 0  # line breaks due before the next content
        self._space = False  # a space is due before it
        self._prefix = ""  # what starts the block that is due
        self._heading = 0  # pieces before the open heading
        self._headings: list[tuple[str, str]] = []
        self._title: list[str] | None = None
        self._titles: list[str] = []
        self._pieces: list[tuple[str | Shown, bool]] = []
        self._base = ""

    # -- what the parser calls

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self._skipped or self._is_left_out(tag, attributes):
            self._skipped += 1
            return
        if self._main or tag in ("main", "article") or attributes.get("role") == "main":
            self._main += 1
        if tag == "img":
            self._show(attributes)
        elif tag == "br":
            self._break(1)
        elif tag == "title":
            self._title = []
        elif tag == "base":
            self._base = attributes.get("href", "").strip()
        else:
            self._open(tag, attributes)

    def end(self, tag: str) -> None:
        self.depth -= 1
        if self._skipped:
            self._skipped -= 1
            return
        self._main -= bool(self._main)
        if tag == "title" and self._title is not None:
            self._titles.append("".join(self._title))
            self._title = None
        elif tag in ("pre", "code"):
            self._kept -= 1
            if tag == "pre" and self._pieces and isinstance(last := self._pieces[-1][0], str):
                self._pieces[-1] = (last.rstrip("\n"), self._pieces[-1][1])
        elif tag == "tr" and self._cells:
            self._cells[-1] = False
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "table" and self._cells:
            self._cells.pop()
        elif tag in _HEADINGS:
            text = "".join(p for p, _ in self._pieces[self._heading :] if isinstance(p, str))
            self._headings.append((tag, text.lstrip("\n# ")))
            self._heading = len(self._pieces)
        if tag in _BLOCKS or tag in _HEADINGS:
            self._break(1 if tag in _CLOSE or tag == "dt" else 2)
            self._prefix = ""

    def data(self, text: str) -> None:
        if self._skipped:
            return
        if self._title is not None:
            self._title.append(text)
        elif self._kept:
            text = text.replace("\r\n", "\n")
            self._put(text.removeprefix("\n") if self._gap else text)
        else:
            words = _WHITE.sub(" ", text)
            self._space |= words.startswith(" ")
            if words.strip(" "):
                self._put(words.strip(" "))
                self._space = words.endswith(" ")

    def comment(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass

    # -- what becomes of it

    def result(self) -> list[str | Shown]:
        """All pieces, of the main part where there is one with content."""
        main = [p for p, is_main in self._pieces if is_main]
        if not any(isinstance(p, Shown) or p.strip() for p in main):
            main = [p for p, _ in self._pieces]
        if main and isinstance(main[0], str):
            main[0] = main[0].lstrip("\n ")
        title = _WHITE.sub(" ", self._titles[0]).strip() if self._titles else ""
        headed = any(tag == "h1" or text == title for tag, text in self._headings)
        return [f"# {title}\n\n", *main] if self._options.title and title and main and not headed else main

    def _is_left_out(self, tag: str, attributes: dict[str, str]) -> bool:
        if tag in _LEFT_OUT or attributes.get("role") in _ROLES or "hidden" in attributes:
            return True
        if "display:none" in attributes.get("style", "").replace(" ", "").lower():
            return True
        if tag == "figcaption" and self._options.caption != "figcaption":
            return True
        named = {*attributes.get("class", "").split(), "#" + attributes.get("id", "")}
        return not named.isdisjoint(self._options.left_out)

    def _open(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _BLOCKS or tag in _HEADINGS:
            self._break(1 if tag in _CLOSE else 2)
        if tag in _HEADINGS:
            self._prefix, self._heading = _HEADINGS[tag], len(self._pieces)
        elif tag in ("ul", "ol"):
            start = attributes.get("start", "1")
            self._lists.append(None if tag == "ul" else int(start) if start.isdecimal() and len(start) < 9 else 1)
        elif tag == "li":
            self._prefix = self._bullet()
        elif tag == "table":
            self._cells.append(False)
        elif tag == "tr" and self._cells:
            self._cells[-1] = False
        elif tag in ("td", "th") and self._cells:
            self._prefix, self._cells[-1] = " | " if self._cells[-1] else "", True
            self._space = False
        elif tag in ("pre", "code"):
            self._kept += 1

    def _bullet(self) -> str:
        if not self._lists:
            return "- "
        number, indent = self._lists[-1], "  " * (len(self._lists) - 1)
        if number is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number}. "

    def _break(self, lines: int) -> None:
        """At least so many line breaks before the next content; within a table's cell it is a space."""
        if self._prefix and self._prefix != " | ":
            return  # the first block of a list's item stands beside its bullet
        if self._cells and self._cells[-1]:
            self._space = True
        else:
            self._gap = max(self._gap, lines)

    def _put(self, piece: str | Shown) -> None:
        before = "\n" * self._gap + self._prefix
        if not before and self._space:
            before = " "
        self._gap, self._prefix, self._space = 0, "", False
        if before:
            self._pieces.append((before, bool(self._main)))
        self._pieces.append((piece, bool(self._main)))

    def _show(self, attributes: dict[str, str]) -> None:
        address, later = attributes.get("src", "").strip(), attributes.get("data-src", "").strip()
        if later and (not address or address[:5].lower() == "data:"):
            address = later  # what stands in ``src`` until a script loads the picture
        if attributes.get("width", "").strip("px ") in _DOT and attributes.get("height", "").strip("px ") in _DOT:
            return
        if address:
            self._put(Shown(address, self._base))
        alt = _WHITE.sub(" ", attributes.get("alt", "")).strip()
        if alt and self._options.caption == "alt":
            self._break(2)
            self._put(alt)
            self._break(2)
