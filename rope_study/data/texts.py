"""Short texts to probe a decoder with: ten passages, six domains, or the user's own.

All were written for this project. The passages hold what the heads of the paper look for (Barbero
et al. 2025): apostrophes, quotations, lists, repeated names, numbers. The domains are for its
comparison of prose, other languages, code and arithmetic (Fig. 19).
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rope_study.data import passages
from rope_study.data.text_files import JSON_ENDINGS, ending, json_rows, read_text
from rope_study.data.tokenizers.base import check_unicode
from rope_study.errors import UserError, nearest
from rope_study.files.paths import kind_of, to_path

ALLOWED = (
    'texts are "default", "domains", a UTF-8 text or JSON Lines file, or a list of strings; if it'
    " is a text itself, give a list with it: [text]"
)


def paragraphs(content: str) -> list[str]:
    """What blank lines separate; the indentation of a first line (code) is kept."""
    pieces = re.split(r"\n\s*\n", f"\n\n{content}\n\n")
    return [piece.rstrip() for piece in pieces if piece.strip()]


def _unwrapped(block: str, joint: str = " ") -> tuple[str, ...]:
    return tuple(joint.join(text.split("\n")) for text in paragraphs(block))


PASSAGES = _unwrapped(passages.PASSAGES)
DOMAINS: dict[str, tuple[str, ...]] = {
    "prose": _unwrapped(passages.PROSE),
    "italian": _unwrapped(passages.ITALIAN),
    "german": _unwrapped(passages.GERMAN),
    "chinese": _unwrapped(passages.CHINESE, joint=""),
    "code": passages.CODE,
    "arithmetic": _unwrapped(passages.ARITHMETIC),
}


@dataclasses.dataclass(frozen=True)
class Text:
    """One text to probe with.

    Attributes:
      text: what to encode.
      label: what to group it by, for example its domain; None where nothing was said.
    """

    text: str
    label: str | None = None


def load_texts(source: str | os.PathLike | Sequence[str] | None = None) -> list[Text]:
    """The texts that a source names, in its order.

    Args:
      source: None or "default" for PASSAGES; "domains" for DOMAINS, labelled; a list of strings;
        or a file (one of those names is "./default"): JSON Lines (.jsonl, .ndjson, .jsonlines,
        .json) with {"text": ...} and perhaps {"label": ...} a line, any other one text a paragraph,
        between blank lines. Files may end in .gz, .bz2, .xz or .zst.

    Raises:
      UserError: no such file, not UTF-8, a wrong line of JSONL, a blank text or none at all, or
        one string in place of a list.
    """
    try:
        texts = list(_read(source))
        if not texts:
            raise UserError(f"texts={_short(source)} holds no text")
    except UserError as error:
        raise UserError(error.problem, "texts", ALLOWED) from error
    return texts


def _read(source: str | os.PathLike | Sequence[str] | None) -> Iterable[Text]:
    if isinstance(source, list | tuple):
        return _list_texts(source)
    if not isinstance(source, str | os.PathLike | None):
        raise UserError(f"texts={_short(source)} is of type {type(source).__name__}")
    if source is None or source == "default":
        return [Text(text) for text in PASSAGES]
    if source == "domains":
        return [Text(text, label) for label, texts in DOMAINS.items() for text in texts]
    return _file_texts(_existing_file(os.fspath(source)))


def _list_texts(items: Sequence[str]) -> Iterable[Text]:
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise UserError(f"texts[{i}]={_short(item)} is not a string")
        _refuse_blank(item, f"texts[{i}]")
        check_unicode(item, f"texts[{i}]")
        yield Text(item)


def _existing_file(name: str) -> Path:
    path = to_path(name)
    if (found := kind_of(path)) != "file":
        kind = "a folder, not a file" if found == "folder" else "not a file"
        raise UserError(f"texts={_short(name)} is {kind}.{nearest(name, ['default', 'domains'])}")
    return path


def _file_texts(file: Path) -> Iterable[Text]:
    content = read_text(file)
    if ending(file) in JSON_ENDINGS:
        for where, row in json_rows(content, file):
            place = f"{str(file)!r}, {where}"
            _refuse_blank(row["text"], place)
            yield Text(row["text"], _checked_label(row.get("label"), place))
    else:
        yield from map(Text, paragraphs(content))


def _checked_label(label: object, place: str) -> str | None:
    if label is None:
        return None
    try:
        if isinstance(label, str):
            label.encode()  # no figure could draw a lone surrogate
            return label
    except UnicodeEncodeError:
        pass
    raise UserError(f"{place}: label {_short(label)} is not a string")


def _refuse_blank(text: str, place: str) -> None:
    # Not dropped: the statistics of the others would move to other rows than the user's.
    if not text.strip():
        raise UserError(f"{place}: the text is empty or only whitespace")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."
