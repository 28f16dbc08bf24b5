"""Short texts to probe a decoder with: ten passages, six domains, or the user's own.

All were written for this project. The passages hold what the heads of the paper look for (Barbero
et al. 2025): apostrophes, quotations, lists, repeated names, numbers. The domains are for its
comparison of prose, other languages, code and arithmetic (Fig. 19).
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rope_study.data import documents
from rope_study.data.passages import DOMAINS, PASSAGES, paragraphs
from rope_study.errors import UserError, nearest

WHERE = 'texts are "default", "domains", a UTF-8 text or JSONL file, or a list of strings'


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
        or a file (one of those names is "./default"): .jsonl with {"text": ...} and perhaps
        {"label": ...} a line, any other one text a paragraph, between blank lines. Files may end
        in .gz or .xz.

    Raises:
      UserError: no such file, not UTF-8, a wrong line of JSONL, a blank text or none at all, or
        one string in place of a list.
    """
    if source is None:
        source = "default"
    if isinstance(source, str | os.PathLike):
        texts = _named_texts(source)
    elif isinstance(source, list | tuple):
        texts = list(_list_texts(source))
    else:
        raise UserError(f"texts={_short(source)} is of type {type(source).__name__}; {WHERE}")
    if not texts:
        raise UserError(f"texts={_short(source)} holds no text; {WHERE}")
    return texts


def _named_texts(source: str | os.PathLike) -> list[Text]:
    if source == "default":
        return [Text(text) for text in PASSAGES]
    if source == "domains":
        return [Text(text, label) for label, texts in DOMAINS.items() for text in texts]
    return list(_file_texts(_existing_file(os.fspath(source))))


def _list_texts(items: Sequence[str]) -> Iterable[Text]:
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise UserError(f"texts[{i}]={_short(item)} is not a string; {WHERE}")
        _refuse_blank(item, f"texts[{i}]")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"texts[{i}] is not valid Unicode ({error}); {WHERE}") from error
        yield Text(item)


def _existing_file(name: str) -> Path:
    path = os.path.expanduser(name)
    # os.path, as Path.is_file raises where a whole text, too long for a name, was given.
    if not os.path.isfile(path):
        kind = "a folder, not a file" if os.path.isdir(path) else "not a file"
        raise UserError(
            f"texts={_short(name)} is {kind}.{nearest(name, ['default', 'domains'])} If it is a"
            f" text itself, give a list with it: [text]; {WHERE}"
        )
    return Path(path)


def _file_texts(file: Path) -> Iterable[Text]:
    content = documents.read_text(file, WHERE)
    if documents.ending(file) == ".jsonl":
        for number, row in documents.jsonl_rows(content, file, WHERE):
            place = f"{str(file)!r}, line {number}"
            _refuse_blank(row["text"], place)
            yield Text(row["text"], _checked_label(row.get("label"), place))
    else:
        yield from map(Text, paragraphs(content))


def _checked_label(label: object, place: str) -> str | None:
    try:
        if label is not None:
            label.encode()  # no string, or a lone surrogate that no figure could draw
    except (AttributeError, UnicodeEncodeError) as error:
        raise UserError(f"{place}: label {_short(label)} is not a string; {WHERE}") from error
    return label


def _refuse_blank(text: str, place: str) -> None:
    # Not dropped: the statistics of the others would move to other rows than the user's.
    if not text.strip():
        raise UserError(f"{place}: the text is empty or only whitespace; {WHERE}")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


# --- the passages -----------------------------------------------------------------------------


# --- the domains ------------------------------------------------------------------------------
