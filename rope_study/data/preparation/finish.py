"""The end of a preparation: shards joined, near-duplicates found, and the index written last."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rope_study.data import documents
from rope_study.data.batches import token_dtype
from rope_study.data.preparation import near_duplicates
from rope_study.data.preparation.encode import CANDIDATES
from rope_study.data.preparation.journal import BY_PIECE, Entry, check_same, read_lines
from rope_study.data.store import (
    INDEX,
    JOURNAL,
    TYPES,
    Columns,
    Writer,
    checksum,
    write_index,
)
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.errors import UserError
from rope_study.files import explained


def finish(folder: Path, made: dict[str, Any], last: Entry, tokenizer: Tokenizer) -> dict[str, Any]:
    """Makes a store of the files that the last entry of a journal describes; gives its index.

    Raises:
      UserError: one side has no documents.
    """
    state, counts = dict(last.state), dict(last.counts)
    dtype = token_dtype(tokenizer)
    held_out = CANDIDATES if f"{CANDIDATES}.tokens" in state else "held_out"
    if "train.signatures" in state:
        signatures = (_signatures(folder, f"{side}.signatures") for side in (held_out, "train"))
        found = near_duplicates.find(*signatures)
        counts["near-duplicates"] = int(found.sum())
        if held_out == CANDIDATES:
            state |= _keep(folder, ~found, dtype)
    sides = {}
    for side in ("train", "held_out"):
        tokens = state.get(f"{side}.tokens", (0, 0))[0] // np.dtype(dtype).itemsize
        documents_there = state.get(f"{side}.starts", (0, 0))[0] // 8
        sides[side] = {"documents": documents_there, "tokens": tokens}
    if not all(side["documents"] for side in sides.values()):
        raise UserError(
            f"{sides['train']['documents']} documents to train on and"
            f" {sides['held_out']['documents']} held out, of {counts.get('documents', 0)} in all;"
            f" both need one. {_skipped(counts)}",
            "held_out",
        )
    fingerprint = documents.fingerprint_of(
        _parts(folder / "train.digests"), _parts(folder / "held_out.digests")
    )
    kept = {f"{side}.{kind}" for side in sides for kind in ("tokens", *TYPES)}
    write_index(
        folder,
        {name: state[name] for name in kept & state.keys()},
        tokenizer,
        fingerprint,
        **sides,
        counts=dict(sorted(counts.items())),
        examples=dict(sorted(last.examples.items())),
        made=made,
    )
    for name in {*state, JOURNAL} - kept:
        (folder / name).unlink(missing_ok=True)
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))


def _skipped(counts: dict[str, int]) -> str:
    skipped = [f"{k.removeprefix('skipped: ')} {n}" for k, n in counts.items() if "skipped" in k]
    return f"Left out: {', '.join(skipped)}" if skipped else "Give more text"


def _signatures(folder: Path, name: str) -> np.ndarray:
    return _column(folder / name, np.uint32).reshape(-1, near_duplicates.HASHES)


def _column(file: Path, dtype: Any) -> np.ndarray:
    if not file.exists() or not file.stat().st_size:  # nothing to map
        return np.empty(0, dtype)
    return np.memmap(file, dtype, "r")


def _keep(folder: Path, chosen: np.ndarray, dtype: Any) -> dict[str, tuple[int, int]]:
    """Writes the chosen candidates as what is held out; the state of those files."""
    tokens = _column(folder / f"{CANDIDATES}.tokens", dtype)
    starts = _column(folder / f"{CANDIDATES}.starts", TYPES["starts"])
    rows = {"digests": _column(folder / f"{CANDIDATES}.digests", "V32")}
    if (folder / f"{CANDIDATES}.prompts").exists():
        rows["prompts"] = _column(folder / f"{CANDIDATES}.prompts", TYPES["prompts"])
    ends = np.append(starts[1:], len(tokens))
    writer = Writer(folder, dtype)
    for i in np.flatnonzero(chosen):
        columns = {name: column[i : i + 1] for name, column in rows.items()}
        columns |= {"tokens": tokens[int(starts[i]) : int(ends[i])]}
        columns |= {"starts": np.zeros(1, TYPES["starts"])}
        writer.append({f"held_out.{name}": column for name, column in columns.items()})
    writer.close()
    return writer.state


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            yield part


# --- shards -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one machine of several has done: a folder, what it was made of, and its blocks."""

    folder: Path
    made: dict[str, Any]
    entries: tuple[Entry, ...]


def read_shards(folder: Path, tokenizer: Tokenizer) -> list[Shard]:
    """All shards in a folder.

    Raises:
      UserError: one is missing, not finished, damaged, or of other settings.
    """
    numbers = [path.name.split("-of-") for path in folder.glob("*-of-*")]
    counts = sorted({int(count) for _, count in numbers})
    if len(counts) != 1:
        what = f"shards of {counts} in all" if counts else "no shards"
        raise UserError(f"{folder} holds {what}: make them with --shard=1/{counts or 16}", "out")
    count = counts[0]
    if missing := sorted(set(range(1, count + 1)) - {int(k) for k, _ in numbers}):
        raise UserError(f"{folder} lacks shard {missing[0]}/{count}: prepare it", "out")
    shards = [_read_shard(folder / f"{k}-of-{count}") for k in range(1, count + 1)]
    for shard in shards:
        check_same(shard.folder, shard.made, shards[0].made)
    if shards[0].made["tokenizer"] != tokenizer.fingerprint:
        problem = f"the shards in {folder} were not made by tokenizer {tokenizer.name!r}"
        raise UserError(problem, "tokenizer")
    return shards


def _read_shard(folder: Path) -> Shard:
    if not (folder / JOURNAL).exists():
        raise UserError(f"{folder} is no shard: prepare it again", "out")
    made, *lines = read_lines(folder / JOURNAL)
    made.pop(BY_PIECE)
    if not lines or "done" not in lines[-1]:
        problem = f"{folder} is not finished: give its command again, it goes on"
        raise UserError(problem, "out")
    entries = tuple(Entry(**line) for line in lines if "done" not in line)
    for name, (size, crc) in (entries[-1].state if entries else {}).items():
        with explained("out"):
            if (folder / name).stat().st_size != size or checksum(folder / name) != crc:
                raise UserError(f"{folder / name} is damaged: prepare this shard again", "out")
    return Shard(folder, made, entries)


def append_shards(out: Path, shards: Sequence[Shard], tokenizer: Tokenizer) -> Entry:
    """Writes the blocks of all shards into `out`, in the order of the input."""
    dtype = token_dtype(tokenizer)
    writer = Writer(out, dtype)
    blocks = []
    for shard in shards:
        befores = (Entry(), *shard.entries)
        blocks += [(e.file, e.unit, shard, b, e) for b, e in zip(befores, shard.entries)]  # noqa: B905
    examples: dict[str, str] = {}
    for _, _, shard, before, entry in sorted(blocks, key=lambda block: block[:2]):
        writer.append(_segment(shard.folder, before, entry, np.dtype(dtype).itemsize))
        examples = {**entry.examples, **examples}
    writer.close()
    counts = sum((Counter(s.entries[-1].counts) for s in shards if s.entries), Counter[str]())
    return Entry(state=writer.state, counts=dict(counts), examples=examples)


def _segment(folder: Path, before: Entry, entry: Entry, itemsize: int) -> Columns:
    """What a block appended to each file of its shard."""
    columns = {}
    for name, (stop, _) in entry.state.items():
        start = before.state.get(name, (0, 0))[0]
        column = np.fromfile(folder / name, np.uint8, stop - start, offset=start)
        if name.endswith(".starts"):
            tokens = f"{name.removesuffix('.starts')}.tokens"
            base = before.state.get(tokens, (0, 0))[0] // itemsize
            column = column.view(TYPES["starts"]) - np.uint64(base)
        columns[name] = column
    return columns
