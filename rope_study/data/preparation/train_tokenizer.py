"""A SentencePiece tokenizer trained on an input, with the conventions of Gemma's.

BPE without normalisation: digits apart, runs of spaces kept, bytes for what is not in the
vocabulary, and pad, EOS, BOS, unknown as ids 0 to 3 (Gemma 1 report, 2403.08295, section 2).
"""

import io
import sys
from collections.abc import Iterator

import sentencepiece

from rope_study.data import documents
from rope_study.data.preparation.encode import texts
from rope_study.data.preparation.records import Options
from rope_study.data.preparation.run import find_input
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.errors import UserError
from rope_study.files import atomic, check_writable
from rope_study.files.paths import to_path

SAMPLE = 2**28  # characters to train on: more changes little and takes memory
BLOCK = 2**20


def train_tokenizer(
    path: str, target: str, vocab_size: int, field: str = "text", held_out: float = 0.1
) -> None:
    """Trains on documents that are not held out, evenly from all files, and writes `target`.

    A tokenizer of that size that is there already is left as it is, so that a command can be given
    again.

    Raises:
      UserError: another file is there, the input cannot be read, or has too little text.
    """
    file = to_path(target, "target")
    if file.suffix != ".model":
        problem = f"tokenizer={target!r} must end in .model: it will be written there"
        raise UserError(problem, "tokenizer")
    if file.exists():
        if load_tokenizer(file).vocab_size != vocab_size:
            raise UserError(
                f"{file} exists with another size than {vocab_size}; nothing was changed",
                "tokenizer",
            )
        print(f"{file} is there and is used", file=sys.stderr)
        return
    check_writable(file, "tokenizer")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=_lines(path, tuple(field.split(",")), held_out),
            model_writer=model, vocab_size=vocab_size, model_type="bpe", byte_fallback=True,
            split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
            add_dummy_prefix=False, normalization_rule_name="identity",
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
            bos_piece="<bos>", minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"no tokenizer of {vocab_size} tokens can be trained on {path!r} ({error})",
            "train_tokenizer",
        ) from error
    with atomic(file) as part:
        part.write_bytes(model.getvalue())


def _lines(path: str, fields: tuple[str, ...], held_out: float) -> Iterator[str]:
    """Lines with their line ends, about SAMPLE characters in all."""
    files, format = find_input(path)
    options = Options(fields, BLOCK, None, 0, 0)
    for file in files:
        left = SAMPLE // len(files)
        for block in format.blocks(file, options):
            for text in texts(format.records(block, options)):
                if not documents.is_held_out(text, held_out):
                    left -= len(text)
                    yield from text.splitlines(keepends=True)
            if left <= 0:
                break
