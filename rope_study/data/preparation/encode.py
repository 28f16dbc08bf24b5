"""A worker: the records of a block become tokens, each document on its side."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rope_study.data import documents
from rope_study.data.batches import token_dtype
from rope_study.data.preparation import near_duplicates
from rope_study.data.preparation.formats import format_of
from rope_study.data.preparation.records import Options, Record, Skipped
from rope_study.data.preparation.streams import Block
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.load import load_tokenizer

# Held out unless they turn out to be near-duplicates: the side's name until then.
CANDIDATES = "candidates"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What workers make of records.

    Attributes:
      tokenizer: what `load_tokenizer` takes.
      options: how files are read.
      held_out: the fraction of documents that is held out.
      by_piece: pieces of a document choose their sides, as where there is only one document.
      prompts: keep how many tokens of each document do not count in the loss.
      near_duplicates: "ignore" keeps nothing to find them by; "drop" calls what may be held out
        candidates until then.
    """

    tokenizer: str
    options: Options
    held_out: float
    by_piece: bool
    prompts: bool
    near_duplicates: str


@dataclasses.dataclass
class Encoded:
    """What a block became.

    Attributes:
      columns: "train.tokens" and so on, see `store.Writer`; "digests" are uint8[pieces, 32],
        "signatures" uint32[pieces, near_duplicates.HASHES].
      counts: of documents by side, and of what was skipped, by reason.
      bad: the first record that is wrong, if any.
    """

    columns: dict[str, np.ndarray]
    counts: Counter[str]
    bad: Skipped | None = None


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One document in a stream: ids, how many of its own are a prompt, and their text."""

    ids: np.ndarray
    prompt: int
    text: str


class Encoder:
    """Encodes blocks; each worker has one."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer | None = None):
        """Loads the tokenizer where none is given."""
        self.plan = plan
        self._tokenizer = tokenizer or load_tokenizer(plan.tokenizer)
        self._dtype = token_dtype(self._tokenizer)

    def __call__(self, file: Path, block: Block) -> Encoded:
        """What a block of a file becomes."""
        counts, bad = Counter[str](), None
        evaluation = CANDIDATES if self.plan.near_duplicates == "drop" else "held_out"
        sides: dict[str, list[_Piece]] = {"train": [], evaluation: []}
        for record in format_of(file).records(block, self.plan.options):
            if isinstance(record, Skipped):
                counts[f"skipped: {record.reason}"] += 1
                bad = bad or (record if record.detail else None)
                continue
            text, pieces = self._pieces(record)
            if not pieces:
                counts["skipped: empty"] += 1
                continue
            for piece in pieces:
                decides = piece.text if self.plan.by_piece else text
                held_out = documents.is_held_out(decides, self.plan.held_out)
                sides[evaluation if held_out else "train"].append(piece)
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
        columns = {}
        for side, pieces in sides.items():
            columns |= {f"{side}.{name}": column for name, column in self._columns(pieces).items()}
        return Encoded(columns, counts, bad)

    def _pieces(self, record: Record) -> tuple[str, list[_Piece]]:
        """The text that decides a document's side, and its pieces; tokens count as their digits."""
        encode, as_document = self._tokenizer.encode, self._tokenizer.as_document
        if isinstance(record, np.ndarray):
            text = " ".join(map(str, record.tolist()))
            return text, [_Piece(as_document(record), 0, text)]
        if isinstance(record, tuple):
            inputs, targets = record
            if not targets.strip():
                return "", []
            if inputs and not inputs[-1].isspace() and not targets[0].isspace():
                inputs += "\n"
            prompt, answer = encode(inputs), encode(targets)
            text = inputs + targets
            ids = as_document(np.concatenate([prompt, answer]))
            return text, [_Piece(ids, len(prompt), text)]
        assert isinstance(record, str)
        pieces = documents.pieces([record])
        return record, [_Piece(as_document(encode(text)), 0, text) for text in pieces]

    def _columns(self, pieces: list[_Piece]) -> dict[str, np.ndarray]:
        lengths = np.array([len(piece.ids) for piece in pieces], np.uint64)
        digests = [documents.digest(piece.text) for piece in pieces]
        nothing = np.empty(0, self._dtype)
        columns = {
            "tokens": np.concatenate(
                [nothing, *(piece.ids.astype(self._dtype) for piece in pieces)]
            ),
            "starts": np.cumsum(lengths, dtype=np.uint64) - lengths,
            "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        }
        if self.plan.prompts:
            columns["prompts"] = np.array([piece.prompt for piece in pieces], np.uint32)
        if self.plan.near_duplicates != "ignore":
            columns["signatures"] = near_duplicates.signatures([piece.text for piece in pieces])
        return columns


# --- in a process of its own ------------------------------------------------------------------

_encoder: Encoder | None = None


def start_worker(plan: Plan) -> None:
    """Loads the tokenizer once; the worker ends with the process that started it."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(plan)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def encode_block(file: Path, block: Block) -> Encoded:
    """What a block becomes, in a worker."""
    assert _encoder is not None
    return _encoder(file, block)


def texts(records: Iterable[Record]) -> Iterator[str]:
    """The texts among records, of instructions both parts."""
    for record in records:
        if isinstance(record, str) and record.strip():
            yield record
        elif isinstance(record, tuple):
            yield "\n".join(record)
