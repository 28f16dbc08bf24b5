"""Documents from files or from Python itself, and their split into train and held-out."""

import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from rope_study.checks import check, checked
from rope_study.data.text_files import JSON_ENDINGS, JSON_LINES, ending, json_rows, read_text
from rope_study.errors import UserError, nearest
from rope_study.files.paths import files_below, kind_of, matches, to_path

# Longer documents are cut into pieces, each of which begins with BOS.
MAX_CHARACTERS = 32_768

# What a folder is searched for. A file or glob that the user names may end as it likes.
TEXT_ENDINGS = ".txt .text .md .rst .tex .html .py .c .h .cc .cpp .java .js .go .rs".split()
TEXT_ENDINGS += JSON_LINES

# Parts of the standard library that are tests, tables, other programs, or already in the topics.
LEFT_OUT = (
    "test tests idlelib lib2to3 encodings distutils ensurepip turtledemo tkinter"
    " pydoc_data __pycache__"
).split()


def read_documents(path: str) -> list[str]:
    """All documents of a corpus, always in the same order.

    A file of JSON Lines holds one document a line, {"text": ...}, and a .json may hold a list of
    them; any other file is one document. What is only whitespace is dropped.

    Args:
      path: "python" for the embedded corpus (a folder of that name is "./python"), a text or JSON
        Lines file (.jsonl, .ndjson, .jsonlines, .json), a folder (searched recursively for
        TEXT_ENDINGS), or a glob; files may end in .gz, .bz2, .xz or .zst.

    Raises:
      UserError: nothing found, unreadable, not UTF-8, no text, or a wrong line of JSONL.
    """
    path = str(path)
    texts = _python_texts() if path == "python" else _file_texts(find_files(path))
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise UserError(f"{path!r} holds no text: all of it is empty or whitespace", "path")
    return documents


@checked
def pieces(documents: Sequence[str]) -> list[str]:
    """Documents in pieces of at most MAX_CHARACTERS, cut between paragraphs where there are any."""
    return [piece for document in documents for piece in _cut(document) if piece.strip()]


def split(documents: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Pieces to train on and held-out ones, about the fraction held_out of the documents.

    A document's own text decides the side of all its pieces: none moves when others are added, and
    equal texts are never on both sides. Where all documents would be on one side, as a single one
    is, each piece decides for itself.

    Raises:
      UserError: held_out is outside (0, 1), or one side is empty.
    """
    check_fraction("held_out", held_out)
    check("documents", documents, Sequence[str])
    train, evaluation = _by_hash(documents, held_out)
    if not train or not evaluation:
        train, evaluation = _by_hash(pieces(documents), held_out)
    if not train or not evaluation:
        raise UserError(
            f"held_out={held_out} leaves {len(train)} documents to train on and {len(evaluation)}"
            " held out, both need one: change held_out or give more text",
            "held_out",
        )
    return pieces(train), pieces(evaluation)


def _by_hash(texts: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    train, evaluation = [], []
    for text in texts:
        (evaluation if is_held_out(text, held_out) else train).append(text)
    return train, evaluation


def is_held_out(text: str, held_out: float) -> bool:
    """Whether a document is held out, by its own text alone."""
    return _hash_fraction(text) < held_out


def check_fraction(argument: str, value: float) -> None:
    """UserError if the value of an argument is not in (0, 1)."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{argument}={value!r} must be a fraction between 0 and 1", argument)


@checked
def fingerprint(train: Sequence[str], held_out: Sequence[str]) -> str:
    """16 hexadecimal digits that tell one split corpus from another.

    They depend on the text of the documents, their order and their sides, not on where they lie.
    """
    return fingerprint_of(map(digest, train), map(digest, held_out))


def digest(text: str) -> bytes:
    """What a piece of text goes into the fingerprint with."""
    return hashlib.sha256(text.encode()).digest()


def fingerprint_of(train: Iterable[bytes], held_out: Iterable[bytes]) -> str:
    """`fingerprint` from the digests of both sides' pieces, in parts of any size."""
    whole = hashlib.sha256()
    for side in (train, held_out):
        # A hash of hashes: where one document ends and the next begins counts too.
        digests = hashlib.sha256()
        for part in side:
            digests.update(part)
        whole.update(digests.digest())
    return whole.hexdigest()[:16]


def _hash_fraction(document: str) -> float:
    """In [0, 1). 48 bits: a float64 holds them exactly, so it never rounds up to 1."""
    return int.from_bytes(digest(document)[:6], "big") / 2**48


# --- the embedded corpus ----------------------------------------------------------------------


def _python_texts() -> Iterator[str]:
    """The language reference in prose, then the standard library's sources; about 8 MB."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = filter(_is_package, subfolders)  # site-packages may be large
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    for file in sorted(files):
        yield read_text(file)


def _is_package(folder: str) -> bool:
    # No identifier, so no package: site-packages, config-3.11-x86_64-linux-gnu, hidden folders.
    return folder.isidentifier() and folder not in LEFT_OUT


# --- files ------------------------------------------------------------------------------------


def find_files(
    path: str, endings: Collection[str] = TEXT_ENDINGS, argument: str = "path"
) -> list[Path]:
    """The file, the files of a folder with one of the endings, or those that match a glob, sorted.

    Raises:
      UserError: there are none.
    """
    root = to_path(path, argument)
    kind = kind_of(root) if path else None
    if kind == "file":
        return [root]
    if kind == "folder":
        files = [file for file in files_below(root) if ending(file) in endings]
        problem = f"the folder {path!r} has no file that ends in {', '.join(endings)}"
    else:
        files = sorted(match for match in matches(path) if match.is_file())
        problem = (
            f"{path!r} is no file or folder and matches none as a glob.{nearest(path, ['python'])}"
            ' Allowed: "python", a text or JSONL file, a folder, a glob'
        )
    if not files:
        raise UserError(problem, argument)
    return files


def _file_texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        text = read_text(file)
        if ending(file) in JSON_ENDINGS:
            yield from (row["text"] for _, row in json_rows(text, file))
        else:
            yield text


def _cut(text: str) -> Iterator[str]:
    """Pieces of at most MAX_CHARACTERS that end with a blank line, else a line, else anywhere."""
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        stop = start + MAX_CHARACTERS
        for boundary in ("\n\n", "\n"):
            at = text.rfind(boundary, start, stop)
            if at >= 0:
                stop = at + len(boundary)
                break
        yield text[start:stop]
        start = stop
    yield text[start:]
