"""Documents from Markdown files: the text as its author wrote it, each picture's own markup replaced by the picture.

markdown-it finds the pictures (CommonMark and tables; what looks like one in code is none), but keeps no places within
a line: rules around its own note where in a paragraph they matched, and paragraphs are found again line by line.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_inline import html_inline, image, link

from tasks.sources.files import UnusableRow
from tasks.sources.pages import PageFiles, PageOptions, Shown

if TYPE_CHECKING:
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_MAX_FRONT_MATTER = 1 << 14
_IMG = re.compile(r"""<img\b(?:[^<>"']|"[^"]*"|'[^']*')*>""", re.IGNORECASE)
_SRC = re.compile(r"""(?<![\w-])src\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


class MarkdownOptions(PageOptions):
    """Options of type ``markdown``."""

    title: bool = True
    """The title that the front matter names is written first, unless the text has a heading of the first level."""


class MarkdownFiles(PageFiles):
    """Files that end in ``.md`` or ``.markdown``, each a document."""

    format = "markdown 1"
    suffixes = (".md", ".markdown")
    max_bytes = 1 << 22

    def pieces(self, data: bytes) -> Iterable[str | Shown]:
        try:
            return pieces(data.decode("utf-8-sig"), self._options)
        except UnicodeDecodeError as e:
            raise UnusableRow("not-utf-8", str(e)) from e

    def page_options(self) -> MarkdownOptions:
        return self._options

    @cached_property
    def _options(self) -> MarkdownOptions:
        return self.options(MarkdownOptions)


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture's markup: characters ``start`` to ``stop`` of the text."""

    start: int
    stop: int
    address: str


def pieces(text: str, options: MarkdownOptions | None = None) -> list[str | Shown]:
    """The text between the pictures, to the letter apart from ``\\r``, and the pictures; front matter is left out.

    Pictures are ``![alt](name "title")``, ``![alt][reference]`` and ``<img src=…>``; of a link around nothing but a
    picture the link goes too. UnusableRow ``bad-markup`` where the parser gives up.
    """
    text, title = _without_front_matter(text.replace("\r\n", "\n").replace("\r", "\n"))
    try:
        tokens = _parser().parse(text)
    except (RecursionError, ValueError, IndexError) as e:
        raise UnusableRow("bad-markup", str(e) or type(e).__name__) from e
    made: list[str | Shown] = []
    headed = any(t.type == "heading_open" and t.tag == "h1" for t in tokens)
    if title and not headed and (options is None or options.title):
        made.append(f"# {title}\n\n")
    position = 0
    for found in _pictures(text, tokens):
        made += [text[position : found.start], Shown(found.address)]
        position = found.stop
    return [*made, text[position:]]


def _without_front_matter(text: str) -> tuple[str, str]:
    """The text behind its front matter (YAML between lines of dashes), and the title in that."""
    match = _FRONT_MATTER.match(text, 0, _MAX_FRONT_MATTER)
    if match is None:
        return text, ""
    try:
        about = yaml.safe_load(match[1] or "{}")
    except (yaml.YAMLError, ValueError, RecursionError):
        return text, ""
    if not isinstance(about, dict):
        return text, ""  # two rules with prose between them
    title = about.get("title")
    return text[match.end() :].lstrip("\n"), title.strip() if isinstance(title, str) else ""


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    for name, rule in (("image", image), ("link", link), ("html_inline", html_inline)):
        parser.inline.ruler.at(name, _placing(rule))
    parser.parse("a")  # it sorts its rules at the first use, which several threads must not do at once
    return parser


def _placing(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
    """The rule, noting with the picture that it made, alone or in a link, where the whole of it stood."""

    def placing(state: StateInline, silent: bool) -> bool:
        start, count = state.pos, len(state.tokens) + bool(state.pending)  # the text before becomes a token first
        matched = rule(state, silent)
        if matched and not silent:
            made = [t for t in state.tokens[count:] if t.type not in ("link_open", "link_close")]
            if len(made) == 1 and made[0].type in ("image", "html_inline"):
                made[0].meta["span"] = (start, state.pos)
        return matched

    return placing


def _pictures(text: str, tokens: list[Token]) -> Iterator[_Found]:
    """All pictures of a text, in order."""
    starts = [0, *(m.end() for m in re.finditer("\n", text)), len(text) + 1]
    done = 0  # of the text; cells of a table share a line
    for token in tokens:
        if token.map is None or token.type not in ("inline", "html_block"):
            continue
        first, last = token.map
        start, stop = starts[first], starts[min(last, len(starts) - 1)]
        if token.type == "html_block":
            yield from _in_html(text, start, stop)
            continue
        lines: list[tuple[int, int]] = []  # where a line starts, in the token's content and in the text
        at, here = 0, max(start, done)
        for number, line in enumerate(token.content.split("\n"), first):
            here = max(here, starts[min(number, len(starts) - 1)])
            written = line.strip()  # tabs before it may have become spaces
            place = text.find(written, here, starts[min(number + 1, len(starts) - 1)])
            if place >= 0:
                lines.append((at + line.find(written), place))
                here = place + len(written)
            at += len(line) + 1
        for child in token.children or []:
            found = _of_child(text, token.content, child, lines, max(start, done), stop)
            if found is not None:
                yield found
                done = found.stop
        done = max(done, here)


def _of_child(
    text: str, content: str, child: Token, lines: list[tuple[int, int]], start: int, stop: int
) -> _Found | None:
    """The picture that a token within a paragraph is; None where it is none, or is not found again in the text."""
    if "span" not in child.meta:
        return None
    if child.type == "image":
        address: Any = child.attrs["src"]
    else:
        tag = _IMG.fullmatch(child.content)
        address = tag and _address(child.content)
    if not address:
        return None
    markup = content[slice(*child.meta["span"])]
    first, last = (_place(edge, lines) for edge in child.meta["span"])
    if start <= first < last and text[first] == markup[0] and text[last - 1] == markup[-1]:
        return _Found(first, last, str(address))
    for written in (markup, markup.replace("|", "\\|")):  # as it stands in a table's cell
        first = text.find(written, start, stop)
        if first >= 0:
            return _Found(first, first + len(written), str(address))
    return None


def _place(at: int, lines: list[tuple[int, int]]) -> int:
    """Where in the text a character of a paragraph's content is, by the last line that starts at or before it."""
    number = bisect_right(lines, at, key=lambda line: line[0]) - 1
    return lines[number][1] + at - lines[number][0] if number >= 0 else -1


def _in_html(text: str, start: int, stop: int) -> Iterator[_Found]:
    """The ``<img>`` of a block of HTML, those in comments left out."""
    hidden = deque(m.span() for m in _COMMENT.finditer(text, start, stop))
    for match in _IMG.finditer(text, start, stop):
        while hidden and hidden[0][1] <= match.start():
            hidden.popleft()
        address = _address(match[0])
        if address and not (hidden and hidden[0][0] <= match.start()):
            yield _Found(*match.span(), address)


def _address(tag: str) -> str:
    match = _SRC.search(tag)
    return html.unescape(next((g for g in match.groups() if g), "")).strip() if match else ""
