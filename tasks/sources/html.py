"""Documents from HTML pages: the main text in reading order, with the pictures where the page shows them.

The parser is libxml2's for HTML, by its events: no tree is built, so that no nesting is too deep for memory or stack,
and HTML knows no entities of a document's own, so that none can grow.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property

from bs4.dammit import EncodingDetector
from lxml import etree  # type: ignore[import-untyped]

from tasks.sources.files import UnusableRow
from tasks.sources.html_text import HtmlOptions, PageText
from tasks.sources.pages import PageFiles, Shown

MAX_DEPTH = 2000
"""Elements within elements. libxml2 takes time by depth for each end tag that fits none."""
_PIECE = 1 << 14
_WIDER = {"iso-8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}
"""What pages are in that declare an encoding, where that is more than they say (WHATWG's table of labels)."""
_NEVER = frozenset(
    ("utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-7", "idna", "punycode")
)
"""What a page is not in if it can say so in ASCII, and what is no encoding of pages."""
_SELF_CLOSED = re.compile(r"<(script|style|title|textarea|iframe|noscript)\b([^<>]*)/>", re.IGNORECASE)


class HtmlFiles(PageFiles):
    """Pages that end in ``.html``, ``.htm`` or ``.xhtml``, each a document."""

    format = "html 1"
    suffixes = (".html", ".htm", ".xhtml")

    def pieces(self, data: bytes) -> Iterable[str | Shown]:
        return pieces(decoded(data), self._options)

    def page_options(self) -> HtmlOptions:
        return self._options

    @cached_property
    def _options(self) -> HtmlOptions:
        return self.options(HtmlOptions)


def decoded(data: bytes) -> str:
    """A page's text by its byte order mark or the encoding it declares, else UTF-8; UnusableRow if neither fits."""
    data, marked = EncodingDetector.strip_byte_order_mark(data)
    tried = [marked] if marked else [*_declared(data), "utf-8"]
    for encoding in tried:
        with suppress(UnicodeError, LookupError):
            return data.decode(encoding)
    raise UnusableRow("not-utf-8", f"the page's bytes are not {' and not '.join(dict.fromkeys(tried))}")


def _declared(data: bytes) -> list[str]:
    """The encoding that the page says it is in, its wider form first; nothing if that is none."""
    said = EncodingDetector.find_declared_encoding(data, is_html=True)
    try:
        name = codecs.lookup(said or "").name
    except (LookupError, ValueError):
        return []
    return [] if name in _NEVER else [_WIDER[name], name] if name in _WIDER else [name]


def pieces(page: str, options: HtmlOptions | None = None) -> list[str | Shown]:
    """The main text and pictures of a page in reading order; UnusableRow ``bad-markup`` where it is no page.

    Headings start with ``#``, list items with ``-`` or a number; a table's row is a line with `` | `` between its
    cells; ``<pre>`` and ``<code>`` keep their white space. Left out are scripts, styles, navigation, footers and form
    fields. Where the page marks its main part (``<main>``, ``<article>``), only that is taken.
    """
    target = PageText(options or HtmlOptions())
    parser = etree.HTMLParser(target=target, huge_tree=True)
    page = _SELF_CLOSED.sub(r"<\1\2></\1>", page)
    try:
        for start in range(0, len(page), _PIECE):
            parser.feed(page[start : start + _PIECE])
            if target.depth > MAX_DEPTH:
                raise UnusableRow("bad-markup", f"more than {MAX_DEPTH:,} elements within one another")
        if page:
            parser.close()
    except etree.LxmlError as e:
        raise UnusableRow("bad-markup", str(e)) from e
    return target.result()
