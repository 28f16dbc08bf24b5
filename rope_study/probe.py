"""Probes of a trained model as files: `python -m rope_study.probe --checkpoint=... --out=dir`.

Reads texts, and writes a NetCDF file for each probe, the paper's figures as PNG, and index.html, a
page without any request to the network where a reader picks a layer and a head and sees its norms
by frequency, its attention over the tokens of a text, and its name.
"""

import zlib
from pathlib import Path

from absl import flags

from rope_study import command
from rope_study.data import load_texts
from rope_study.errors import UserError, nearest
from rope_study.files import check_new_folder
from rope_study.files.paths import to_path
from rope_study.reports.model import LENGTH, PAGE, PROBES, Measurements, probe, table, write
from rope_study.sharding import check_same, is_main_process, on_main


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags()
    text = "'default', 'domains', a UTF-8 text (a paragraph is a text) or JSONL."
    flags.DEFINE_string("text", "default", text)
    given = "A text itself, instead of --text; again for more."
    flags.DEFINE_multi_string("string", [], given)
    flags.DEFINE_list("probes", list(PAGE), f"Of {', '.join(PROBES)}.")
    out = "A new folder for NetCDF, PNG and index.html."
    flags.DEFINE_string("out", None, out)
    for name, default, least, about in (
        ("length", None, 2, f"The most tokens of a text; {LENGTH}, or fewer if trained on fewer."),
        ("batch", 8, 1, "Texts at once."),
        ("texts", 0, 0, "How many texts, evenly spaced; 0: all."),
        ("page_texts", 3, 0, "Of how many texts the page shows attention."),
        ("page_tokens", 48, 2, "Of how many tokens of each."),
    ):
        flags.DEFINE_integer(name, default, about, least)


def run() -> None:
    """Probes a checkpoint and writes what was measured."""
    f = flags.FLAGS
    folder = check_flags(f)
    texts = load_texts(list(f.string) or f.text)
    if 0 < f.texts < len(texts):
        texts = [texts[i * len(texts) // f.texts] for i in range(f.texts)]
    check_same({"the text": zlib.crc32(repr(texts).encode())})
    about = f"{len(texts)} text(s), {'given' if f.string else f.text}"
    decoder, params, tokenizer = command.load_model(f.rotary)
    with command.finish_first() as stopped:
        measured = probe(
            decoder, params, tokenizer, texts, f.probes, about=about, length=f.length,
            batch=f.batch, page_texts=f.page_texts, page_tokens=f.page_tokens, stopped=stopped,
        )  # fmt: skip
        if is_main_process():
            write_all(folder, measured, about, command.trained_length(decoder))


def write_all(folder: Path, measured: Measurements, about: str, trained_on: str) -> None:
    """Writes what was measured, and prints the names of heads and files."""
    first = next(iter(measured.datasets.values()))
    facts = {"checkpoint": flags.FLAGS.checkpoint, "model": first.model, "texts": about}
    facts["trained on"] = trained_on
    facts |= {"tokens": int(first.tokens), "longest text": f"{int(first.context)} tokens"}
    written = write(folder, measured, facts)
    if named := measured.datasets.get("head_names"):
        print(table(named) + "\n")
    print("\n".join(map(str, written)))
    if not any(path.name == "index.html" for path in written):
        print(f"no index.html: it needs --probes={','.join(PAGE)} and --page_texts of 1 or more")


def check_flags(f: flags.FlagValues) -> Path:
    """The output folder; UserError for flags that cannot be, before anything is read or written."""
    command.check_model_flags()
    if f.out is None:
        raise UserError("no folder for the results: give a new one", "out")
    folder = to_path(on_main(lambda: str(check_new_folder(f.out, "out"))))
    if f.string and f["text"].present:
        raise UserError("--text and --string both say what to read: give one of them")
    for name in f.probes or [""]:
        if name not in PROBES:
            raise UserError(
                f"unknown probe {name!r}.{nearest(name, PROBES)} Known: {', '.join(PROBES)}",
                "probes",
            )
    return folder


def main() -> None:
    """The command."""
    remedies = {
        "texts": "set --text to 'default', 'domains', a UTF-8 text or JSON Lines, or give a text"
        " itself with --string",
        "minimum": "give longer texts, or leave head_patterns out of --probes",
    }
    command.run_flags(run, define_flags, __doc__, remedies)


if __name__ == "__main__":
    main()
