"""Wikipedia dumps, pages-articles*.xml: articles as plain text, without redirects and the rest.

Pages are cut by their end tag, which a text in XML cannot hold; mwxml reads them and
mwparserfromhell what they are written in. Templates, tables, references, files, categories and
comments go; titles of sections and the words of links stay.
"""

import html
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from rope_study.data.preparation.records import Options, Record, Skipped
from rope_study.data.preparation.streams import Block, cut, optional
from rope_study.errors import UserError

PAGE, END_OF_PAGE = b"<page>", b"</page>"
ARTICLES, FILES, CATEGORIES = 0, 6, 14  # namespaces
HIDDEN = {"table", "gallery", "ref", "references", "math", "timeline", "score", "style", "imagemap"}


def blocks(file: Path, options: Options) -> Iterator[Block]:
    """Whole pages, each block with the dump's header.

    Raises:
      UserError: it is no dump.
    """
    header = b""
    for i, block in enumerate(cut(file, END_OF_PAGE, options.block)):
        content = block.content
        if not i:
            header, tag, rest = content.partition(PAGE)
            if b"<mediawiki" not in header or not tag:
                problem = "is no Wikipedia dump: it does not begin with <mediawiki> and pages"
                raise UserError(f"{str(file)!r} {problem}", "input")
            content = tag + rest
        yield Block(content, block.first, block.position, header)


def records(block: Block, _: Options) -> Iterator[Record]:
    """The articles among the pages of a block, and what the others are."""
    *pages, rest = block.content.split(END_OF_PAGE)
    try:
        yield from list(_pages(block.header, pages, block.first)) if pages else ()
    except _broken():  # one of them, and to find out which takes longer
        for number, page in enumerate(pages, block.first):
            try:
                yield from list(_pages(block.header, [page], number))
            except UnicodeDecodeError as error:
                yield Skipped("not UTF-8", number, f"not UTF-8 ({error.reason})")
            except _broken() as error:
                yield Skipped("not XML", number, f"no page of a dump ({error})")
    if PAGE in rest:
        yield Skipped("cut short", block.first + len(pages), "the dump ends inside a page")


def _broken() -> tuple[type[Exception], ...]:
    """What mwxml raises for what is no page, or no XML."""
    return (ParseError, optional("mwxml.errors").MalformedXML, ValueError)


def _pages(header: bytes, pages: list[bytes], first: int) -> Iterator[Record]:
    xml = END_OF_PAGE.join([header + pages[0], *pages[1:], b"</mediawiki>"]).decode()
    dump = optional("mwxml").Dump.from_file(io.StringIO(xml))
    hidden = {space.name.lower() for space in dump.site_info.namespaces or ()
              if space.id in (FILES, CATEGORIES)}  # fmt: skip
    for number, page in enumerate(dump.pages, first):
        yield _article(page, number, hidden | {"file", "image", "category"})


def _article(page: Any, number: int, hidden: set[str]) -> Record:
    if page.redirect is not None:
        return Skipped("redirects", number)
    revision = next(iter(page), None)
    if revision is None:
        raise ValueError("a page without a revision")
    if page.namespace != ARTICLES or revision.model not in (None, "wikitext"):
        return Skipped("not articles", number)
    text = plain_text(revision.text or "", hidden)
    return f"{page.title}\n\n{text}" if text else Skipped("empty", number)


# --- wikitext ---------------------------------------------------------------------------------


def plain_text(wikitext: str, hidden: Collection[str] = ("file", "image", "category")) -> str:
    """What a reader sees of an article's words.

    Args:
      wikitext: as in the dump.
      hidden: lower-case names of namespaces whose links are no words.
    """
    text = "".join(_words(wikitext, hidden))
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _words(wikitext: str, hidden: Collection[str]) -> list[str]:
    """From the tokens of mwparserfromhell: its trees of them take over 3 times as long.

    Whatever opens - a template, a link, a tag - has parts, each a list of words; when it closes
    one of them goes into the part of what is around it, or none.
    """
    parser = optional("mwparserfromhell.parser")
    open_parts: list[list[list[str]]] = [[[]]]
    for token in parser.Parser()._tokenizer.tokenize(wikitext):
        kind = type(token).__name__
        if kind == "Text":
            open_parts[-1][-1].append(token.text)
        elif kind in OPEN:
            open_parts.append([[]])
        elif kind in NEXT_PART:
            open_parts[-1].append([])
        elif kind in CLOSE:
            open_parts[-2][-1] += CLOSE[kind](open_parts.pop(), hidden)
        elif kind in ENTITY:
            open_parts[-1][-1].append(ENTITY[kind])
    return open_parts[0][0]


def _nothing(*_: Any) -> list[str]:
    return []


def _link(parts: list[list[str]], hidden: Collection[str]) -> list[str]:
    namespace = "".join(parts[0]).partition(":")[0].strip().lower()
    return [] if namespace in hidden else parts[-1]


def _url(parts: list[list[str]], _: Collection[str]) -> list[str]:
    return parts[-1]


def _tag(parts: list[list[str]], _: Collection[str]) -> list[str]:
    name, contents = "".join(parts[0]).strip().lower(), parts[-2]
    return [] if name in HIDDEN else contents


def _entity(parts: list[list[str]], _: Collection[str]) -> list[str]:
    return [html.unescape(f"&{''.join(parts[0])};")]


OPEN = {"TemplateOpen", "ArgumentOpen", "WikilinkOpen", "ExternalLinkOpen", "TagOpenOpen"}
OPEN |= {"CommentStart", "HTMLEntityStart"}
NEXT_PART = {"WikilinkSeparator", "ExternalLinkSeparator", "ArgumentSeparator", "TagAttrStart"}
NEXT_PART |= {"TagCloseOpen", "TagOpenClose"}
CLOSE = {
    "TemplateClose": _nothing, "ArgumentClose": _nothing, "CommentEnd": _nothing,
    "WikilinkClose": _link, "ExternalLinkClose": _url, "TagCloseClose": _tag,
    "TagCloseSelfclose": _nothing, "HTMLEntityEnd": _entity,
}  # fmt: skip
ENTITY = {"HTMLEntityNumeric": "#", "HTMLEntityHex": "x"}
