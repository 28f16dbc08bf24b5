"""Loss of a checkpoint by document, position and length: `python -m rope_study.evaluate
--checkpoint=... --data=wiki/ --lengths=256,1024 --rotary=trained --rotary='yarn_rope(4, 256)'`.

Reads documents in windows that each begin with BOS, and prints loss and perplexity with 95 %
intervals over documents. Several encodings are compared with the first on the same tokens.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from rope_study import command, sharding
from rope_study.data import Tokenizer
from rope_study.data.batches import MASKED, check_documents, check_integer
from rope_study.data.document_windows import check_path, load_documents
from rope_study.decoder import Decoder, fit_layout, layout_of, parameter_tree, variants
from rope_study.errors import UserError
from rope_study.files import check_new_folder
from rope_study.files.paths import to_path
from rope_study.reports.evaluation import table, write
from rope_study.training.by_document import evaluate_documents

LENGTH, LONG = 512, 2048
TRAINED = "trained"


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags(rotary=False)
    encodings = f"Run it with this encoding; again for more; {TRAINED!r} is the checkpoint's."
    flags.DEFINE_multi_string("rotary", [TRAINED], encodings)
    string = flags.DEFINE_string
    text = "A store (of which the held-out side), a file, folder, glob or JSONL; 'python'."
    string("data", "python", text)
    held_out = "Of a text, only documents that a run with this data.held_out does not train on."
    flags.DEFINE_float("held_out", None, held_out)
    lengths = f"Tokens a window; the trained length (up to {LONG}) and twice as many, or {LENGTH}."
    flags.DEFINE_list("lengths", [], lengths)
    documents = "'masked': each is read by itself; 'joined': windows cross documents."
    string("documents", MASKED, documents)
    flags.DEFINE_integer("texts", 128, "How many documents, evenly spaced; 0: all.", 0)
    flags.DEFINE_integer("batch_size", 8, "Windows of the greatest length at once.", 1)
    string("out", None, "A new folder for NetCDF, the table and a figure.")


def run() -> None:
    """Evaluates the checkpoint, prints the table, and writes it where --out says so."""
    f = flags.FLAGS
    folder, lengths = check_flags(f)
    models, tokenizer = load_models(f.rotary)
    progress = sharding.is_main_process()
    documents = load_documents(f.data, tokenizer, f.texts, f.held_out, progress)
    sharding.check_same({"the text": zlib.crc32(documents.tokens.tobytes())})
    trained = next(iter(models.values()))[0].config.trained_length
    evaluation = evaluate_documents(
        models, documents, lengths or default_lengths(trained), across=f.documents,
        batch_size=f.batch_size, progress=progress,
    )  # fmt: skip
    evaluation = evaluation.assign_attrs(checkpoint=f.checkpoint)
    if sharding.is_main_process():
        written = [] if folder is None else write(folder, evaluation)
        print(table(evaluation), *written, sep="\n")


def load_models(encodings: Sequence[str]) -> tuple[dict[str, tuple[Decoder, dict]], Tokenizer]:
    """The model under each encoding, by its name, and the tokenizer; they share their arrays.

    Raises:
      UserError: as checkpoints.load, before any is run; or an encoding twice.
    """
    decoder, params, tokenizer = command.load_model()
    trained, models = decoder.config, {}
    for encoding in encodings:
        name, config = " / ".join(dict.fromkeys(map(variants.name_of, trained.pattern))), trained
        if encoding != TRAINED:
            name, config = variants.apply(trained, encoding, "rotary")
        if name in models:
            raise UserError(f"rotary={encoding!r} is {name}, which is given twice", "rotary")
        if parameter_tree(config) == parameter_tree(trained):
            models[name] = Decoder(config, fit_layout(config, layout_of(decoder))), params
        else:
            models[name] = command.load_model(encoding)[:2]
    return models, tokenizer


def check_flags(f: flags.FlagValues) -> tuple[Path | None, list[int]]:
    """The output folder and the lengths; UserError for flags that cannot be, before all else."""
    command.check_model_flags()
    check_documents(f.documents)
    check_path(f.data, f.held_out)
    folder = None
    if f.out is not None:
        folder = to_path(sharding.on_main(lambda: str(check_new_folder(f.out, "out"))))
    try:
        lengths = [int(length) for length in f.lengths]
    except ValueError:
        problem = f"lengths={','.join(f.lengths)!r} must be whole numbers, such as 256,1024"
        raise UserError(problem, "lengths") from None
    for length in lengths:
        check_integer("lengths", length)
    return folder, lengths


def default_lengths(trained: int | None) -> list[int]:
    """The trained length and twice as many, where it is known and a few documents are as long."""
    return [LENGTH] if trained is None or trained > LONG else [trained, 2 * trained]


def main() -> None:
    """The command."""
    command.run_flags(run, define_flags, __doc__, {"path": "set --data"})


if __name__ == "__main__":
    main()
