"""Text to a token store: `python -m rope_study.prepare --input=wiki.xml.bz2 --out=store ...`.

Reads Wikipedia dumps (pages-articles*.xml.bz2), JSON Lines, Parquet, Arrow, plain text, and tokens
that others made (flat files, ArrayRecord), on all cores and within bounded memory. Killed, it goes
on from there when the same command is given again. What it writes is a folder that config.data.path
takes; its bytes depend neither on the number of workers nor on that of shards.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from rope_study.checks import check
from rope_study.errors import UserError
from rope_study.files.paths import to_path

# Workers import this module again, so what is not for them is imported where it is used.


def define_flags() -> None:
    """The command's flags."""
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    string("input", None, "A file, a folder or a glob, all of one format.")
    string("out", None, "The folder to write.")
    string("tokenizer", None, "As config.data.tokenizer: bytes, or a path.")
    tokens = "First train a SentencePiece model of that many tokens and write it to --tokenizer."
    integer("train_tokenizer", None, tokens, 300)
    string("field", "text", "Of JSON or a table; of instructions two: inputs,targets.")
    string("loss", "targets", "Of instructions, what counts: targets or all.")
    flags.DEFINE_float("held_out", 0.1, "Fraction of documents kept for evaluation.")
    near = "Held-out documents that are almost in the training text too: report, drop or ignore."
    string("near_duplicates", "report", near)
    string("token_dtype", None, "Of flat token files (.bin): uint16, uint32 or int32.")
    flags.DEFINE_bool("skip_bad", False, "Leave out and count what is wrong instead of stopping.")
    integer("workers", 0, "Processes; 0: one a core.", 0)
    string("shard", None, "3/16: only the third of 16 parts, on one of several machines.")
    flags.DEFINE_bool("join", False, "Make one store of the shards in --out.")
    flags.DEFINE_float("block_mb", 4, "Input that a worker takes at once.", 0.001)


def run() -> None:
    """Makes the store, and says what is in it."""
    from rope_study.data.preparation import run as preparation
    from rope_study.data.preparation.train_tokenizer import train_tokenizer

    f = flags.FLAGS
    for name in ("out", "tokenizer") if f.join else ("input", "tokenizer"):
        if getattr(f, name) is None:
            raise UserError(f"no {name}: give one, as in --{name}={EXAMPLES[name]}")
    if f.join:
        out = to_path(f.out, "out")
        _report(out, preparation.join(out, f.tokenizer))
        return
    if f.train_tokenizer:
        train_tokenizer(f.input, f.tokenizer, f.train_tokenizer, f.field, f.held_out)
        if f.out is None:
            return
    if f.out is None:
        raise UserError(f"no out: give one, as in --out={EXAMPLES['out']}")
    check("block_mb", f.block_mb, float)
    settings = preparation.Settings(
        input=f.input, out=to_path(f.out, "out"), tokenizer=f.tokenizer, field=f.field,
        loss=f.loss, held_out=f.held_out, near_duplicates=f.near_duplicates,
        token_dtype=f.token_dtype, skip_bad=f.skip_bad, workers=f.workers, shard=_shard(f.shard),
        block=int(f.block_mb * 2**20),
    )  # fmt: skip
    _report(settings.out, preparation.prepare(settings))


EXAMPLES = {"input": "wiki.xml.bz2", "out": "store", "tokenizer": "tokenizer.model"}


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, _, shards = text.partition("/")
    if not (k.isdecimal() and shards.isdecimal() and 1 <= int(k) <= int(shards)):
        raise UserError(f"shard={text!r} must be one of several, such as 3/16", "shard")
    return int(k), int(shards)


def _report(out: Path, index: dict[str, Any]) -> None:
    """What is in a store, or in a shard: what was left out goes to stderr."""
    counts = index.get("counts", index)
    for name, count in sorted(counts.items()):
        if name.startswith("skipped: "):
            reason = name.removeprefix("skipped: ")
            example = index.get("examples", {}).get(reason)
            first = f"; the first: {example}" if example else ""
            print(f"left out {count:,}: {reason}{first}", file=sys.stderr)
    if "train" not in index:
        print(f"a shard of {counts.get('documents', 0):,} documents is in {out}")
        return
    train, held_out = index["train"], index["held_out"]
    near = counts.get("near-duplicates")
    action = "left out" if index["made"]["near_duplicates"] == "drop" else "kept"
    duplicates = "" if near is None else f"; {near:,} near-duplicates of training text {action}"
    print(
        f"{out}: {train['tokens']:,} tokens to train on in {train['documents']:,} documents,"
        f" {held_out['tokens']:,} held out in {held_out['documents']:,}{duplicates}"
    )


def main() -> None:
    """The command."""
    from rope_study import command

    command.run_flags(run, define_flags, __doc__)


if __name__ == "__main__":
    main()
