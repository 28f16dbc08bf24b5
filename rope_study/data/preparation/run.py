"""From files to a store: on all cores, in the order of the input, and on from where it was killed.

A worker gets a block, and what it makes of it is appended when all before it is. The journal has a
line for each block: sizes and checksums of the files after it. A killed run cuts the files back to
the last line and skips the blocks before. A shard is such a folder that stops there; joining is
appending the blocks of all shards in the order of the input.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from rope_study.data.batches import token_dtype
from rope_study.data.documents import TEXT_ENDINGS, check_fraction, find_files
from rope_study.data.preparation import finish
from rope_study.data.preparation.encode import Encoded, Encoder, Plan, encode_block, start_worker
from rope_study.data.preparation.formats import FLAT, FORMATS, TOKEN_TYPES, Format, format_of
from rope_study.data.preparation.journal import Entry, Journal, check_same
from rope_study.data.preparation.records import Options
from rope_study.data.preparation.streams import Block
from rope_study.data.store import INDEX, JOURNAL, Writer, open_store
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.errors import UserError
from rope_study.files import check_writable, explained
from rope_study.files.paths import is_remote, size_of

ENDINGS = sorted({*TEXT_ENDINGS, *FORMATS} - {".bin"})  # others too call their files .bin
LOSSES = ("targets", "all")
NEAR_DUPLICATES = ("report", "drop", "ignore")
SHARDS = "shards"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to make a store of, and how.

    Attributes:
      input: a file, folder or glob, all of one format.
      out: the folder to write.
      tokenizer: what `load_tokenizer` takes.
      field: of JSON or a table the text's; or "inputs,targets" of instructions.
      loss: of instructions, "targets" or "all".
      held_out: the fraction of documents kept for evaluation.
      near_duplicates: of held-out documents in the training text: "report", "drop" or "ignore".
      token_dtype: of flat token files.
      skip_bad: leave out and count records that are wrong, instead of stopping.
      workers: processes; 0: one a core.
      shard: (k, n) makes the k-th of n shards, for `join`.
      block: bytes that a worker takes at once.

    Raises:
      UserError: a value that is not allowed.
    """

    input: str
    out: Path
    tokenizer: str
    field: str = "text"
    loss: str = "targets"
    held_out: float = 0.1
    near_duplicates: str = "report"
    token_dtype: str | None = None
    skip_bad: bool = False
    workers: int = 0
    shard: tuple[int, int] | None = None
    block: int = 2**22

    def __post_init__(self):
        check_fraction("held_out", self.held_out)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("near_duplicates", self.near_duplicates, NEAR_DUPLICATES)
        if self.token_dtype is not None:
            _check_choice("token_dtype", self.token_dtype, TOKEN_TYPES)
        if not all(self.fields) or len(self.fields) > 2:
            raise UserError(
                f"field={self.field!r} must be one name, or two as in inputs,targets", "field"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The names in `field`."""
        return tuple(self.field.split(","))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} must be one of {', '.join(allowed)}", name)


def find_input(path: str) -> tuple[list[Path], Format]:
    """The files of an input, and what they all are.

    Raises:
      UserError: none, or of several formats.
    """
    files = find_files(path, ENDINGS, "input")
    formats = {format_of(file).name: file for file in files}
    if len(formats) > 1:
        names = "; ".join(f"{name}: {file.name}" for name, file in formats.items())
        raise UserError(f"{path!r} has files of several formats ({names}): give one", "input")
    return files, format_of(files[0])


def prepare(settings: Settings) -> dict[str, Any]:
    """Makes a store, or a shard of one; goes on where a run before it was stopped.

    Returns:
      The index, of a shard what is counted in it.

    Raises:
      UserError: anything in the way; what was read until then is kept.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    tokenizer.check_separator()
    files, format = find_input(settings.input)
    folder = settings.out
    if is_remote(folder):
        raise UserError(f"{folder}: a store is written bit by bit: give a folder of a disk", "out")
    if settings.shard:
        folder = folder / SHARDS / f"{settings.shard[0]}-of-{settings.shard[1]}"
    made = _made(settings, files, format, tokenizer)
    with _owned(folder):
        if (folder / INDEX).exists():
            store = open_store(folder)
            check_same(folder, store.index["made"], made)
            print(f"{folder} is finished already", file=sys.stderr)
            return store.index
        journal = Journal(folder / JOURNAL, made)
        last = _encode(settings, files, tokenizer, journal)
        if not last.both_sides and not journal.by_piece and not settings.shard:
            journal.restart(by_piece=True)
            last = _encode(settings, files, tokenizer, journal)
        if settings.shard:
            journal.close(done=True)
            return last.counts
        journal.close()
        return finish.finish(folder, made, last, tokenizer)


def join(out: Path, tokenizer_name: str) -> dict[str, Any]:
    """Makes one store of all shards in a folder, and deletes them.

    Returns:
      The index.

    Raises:
      UserError: a shard is missing, not finished, damaged, or of other settings.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    shards = finish.read_shards(out / SHARDS, tokenizer)
    with _owned(out):
        last = finish.append_shards(out, shards, tokenizer)
        index = finish.finish(out, shards[0].made, last, tokenizer)
    shutil.rmtree(out / SHARDS)
    return index


def _made(
    settings: Settings, files: list[Path], format: Format, tokenizer: Tokenizer
) -> dict[str, Any]:
    """What the bytes of a store depend on, and the size of blocks, which a journal counts."""
    made: dict[str, Any] = {
        "input": [[file.name, size_of(file)] for file in files],
        "tokenizer": tokenizer.fingerprint,
        "field": settings.field,
        "held_out": settings.held_out,
        "near_duplicates": settings.near_duplicates,
        "block": settings.block,
    }
    if len(settings.fields) > 1:
        made["loss"] = settings.loss
    if format is FLAT:
        made["token_dtype"] = settings.token_dtype
    return made


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Refuses a folder with other files, and one that another process writes."""
    check_writable(folder, "out")
    with explained("out"):
        known = (JOURNAL, INDEX, SHARDS)
        if folder.exists() and (
            not folder.is_dir()
            or (any(folder.iterdir()) and not any((folder / name).exists() for name in known))
        ):
            raise UserError(f"{folder} exists and is no store; nothing was changed", "out")
        folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")  # the system's: it ends with its process
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another process is writing {folder}: wait for it", "out") from error
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was read is kept in {folder}; the same command goes on from there")
        raise
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


# --- blocks -----------------------------------------------------------------------------------


def _encode(settings: Settings, files: list[Path], tokenizer: Tokenizer, journal: Journal) -> Entry:
    """Encodes what the journal has not; gives its last entry."""
    instructions = len(settings.fields) > 1
    options = Options(
        settings.fields, settings.block, settings.token_dtype, tokenizer.separator,
        tokenizer.vocab_size,
    )  # fmt: skip
    plan = Plan(
        settings.tokenizer, options, settings.held_out, journal.by_piece,
        prompts=instructions and settings.loss == "targets",
        near_duplicates=settings.near_duplicates,
    )  # fmt: skip
    last = journal.last
    writer = Writer(journal.folder, token_dtype(tokenizer), last.state)
    before = [0, *_sums(size_of(file) for file in files)]
    units = _units(files, options, settings.shard or (1, 1), last)
    with (
        contextlib.closing(writer),
        tqdm(
            total=before[-1], initial=last.position, unit="B", unit_scale=True, desc="prepare",
            mininterval=0.5 if sys.stderr.isatty() else 20,
        ) as bar,
        contextlib.closing(_in_order(units, plan, tokenizer, settings.workers)) as results,
    ):  # fmt: skip
        for file, unit, block, encoded in results:
            path = files[file]
            if encoded.bad and not settings.skip_bad:
                place = f"{str(path)!r}, record {encoded.bad.number}"
                remedy = "mend it, or leave out and count such records with --skip_bad"
                raise UserError(f"{place}: {encoded.bad.detail}", "skip_bad", remedy)
            writer.append(encoded.columns)
            writer.flush()
            counts = Counter(last.counts) + encoded.counts
            examples = dict(last.examples)
            if encoded.bad:
                place = f"{path.name}, record {encoded.bad.number}: {encoded.bad.detail}"
                examples.setdefault(encoded.bad.reason, place)
            position = before[file] + block.position
            last = Entry(file, unit, position, writer.state, dict(counts), examples)
            journal.append(last)
            bar.update(position - bar.n)
    return last


def _sums(sizes: Iterator[int]) -> Iterator[int]:
    total = 0
    for size in sizes:
        yield (total := total + size)


def _units(
    files: list[Path], options: Options, shard: tuple[int, int], last: Entry
) -> Iterator[tuple[int, int, Path, Block]]:
    """(file, number in it, path, block) of a shard, after the last entry of its journal.

    Shards deal whole files where there are enough, so that each reads only its own; else blocks.
    """
    k, shards = shard
    whole_files = len(files) >= shards
    for i, file in enumerate(files):
        if i < last.file or (whole_files and i % shards != k - 1):
            continue
        for number, block in enumerate(format_of(file).blocks(file, options)):
            mine = whole_files or (i + number) % shards == k - 1
            if mine and (i, number) > (last.file, last.unit):
                yield i, number, file, block


def _in_order(
    units: Iterator[tuple[int, int, Path, Block]], plan: Plan, tokenizer: Tokenizer, workers: int
) -> Generator[tuple[int, int, Block, Encoded]]:
    """What workers make of each unit, in the order of the units; few are held at a time."""
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        encoder = Encoder(plan, tokenizer)
        yield from ((i, number, block, encoder(file, block)) for i, number, file, block in units)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (plan,))
    waiting: collections.deque = collections.deque()
    try:
        for i, number, file, block in units:
            about = Block(None, block.first, block.position)  # its content is only with the worker
            waiting.append((i, number, about, pool.submit(encode_block, file, block)))
            if len(waiting) > 2 * workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was ended from outside, most likely for want of memory; the same command with"
            " fewer workers goes on from there",
            "workers",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(file: int, number: int, block: Block, future: Any) -> tuple[int, int, Block, Encoded]:
    return file, number, block, future.result()
