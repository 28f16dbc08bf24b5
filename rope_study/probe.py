"""Probes of a trained model as files: `python -m rope_study.probe --checkpoint=... --out=dir`."""

from pathlib import Path

from absl import flags

from rope_study import command
from rope_study.data import load_texts
from rope_study.errors import UserError, nearest
from rope_study.reports.model import PAGE, PROBES, probe, table, write
from rope_study.sharding import is_main_process


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags()
    flags.DEFINE_string(
        "text", "default", "'default', 'domains', a UTF-8 text (a paragraph is a text) or JSONL."
    )
    flags.DEFINE_multi_string("string", [], "A text itself, instead of --text; again for more.")
    flags.DEFINE_list("probes", list(PAGE), f"Of {', '.join(PROBES)}.")
    flags.DEFINE_string("out", None, "A new folder for NetCDF, PNG and index.html.")
    flags.DEFINE_integer("length", 512, "The most tokens of a text.")
    flags.DEFINE_integer("batch", 8, "Texts at once.")
    flags.DEFINE_integer("page_texts", 3, "Of how many texts the page shows attention.")
    flags.DEFINE_integer("page_tokens", 48, "Of how many tokens of each.")


def main() -> None:
    """Probes a checkpoint and writes what was found."""
    f = flags.FLAGS
    folder = check_flags(f)
    texts = load_texts(list(f.string) or f.text)
    about = f"{len(texts)} text(s), {'given' if f.string else f.text}"
    decoder, params, tokenizer = command.load_model()
    found = probe(
        decoder, params, tokenizer, texts, f.probes, about=about, length=f.length, batch=f.batch,
        page_texts=f.page_texts, page_tokens=f.page_tokens,
    )  # fmt: skip
    if not is_main_process():
        return
    first = next(iter(found.datasets.values()))
    facts = {"checkpoint": f.checkpoint, "model": first.model, "texts": about}
    facts |= {"tokens": int(first.tokens), "longest text": f"{int(first.context)} tokens"}
    written = write(folder, found, facts)
    if named := found.datasets.get("head_names"):
        print(table(named) + "\n")
    print("\n".join(map(str, written)))


def check_flags(f: flags.FlagValues) -> Path:
    """The output folder; UserError for flags that cannot be, before anything is read or written."""
    command.check_model_flags()
    if f.out is None:
        raise UserError("no folder for the results; give a new one, as in --out=probed")
    if f.string and f["text"].present:
        raise UserError("--text and --string both say what to read: give one of them")
    for name in f.probes or [""]:
        if name not in PROBES:
            raise UserError(
                f"unknown probe {name!r}.{nearest(name, PROBES)} Known: {', '.join(PROBES)};"
                " set --probes"
            )
    for name, least in {"length": 2, "batch": 1, "page_texts": 0, "page_tokens": 2}.items():
        if f[name].value < least:
            raise UserError(f"{name}={f[name].value} must be at least {least}; set --{name}")
    folder = Path(f.out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; nothing was changed: set --out anew")
    return folder


if __name__ == "__main__":
    define_flags()
    command.run_flags(main)
