"""Loss of any checkpoint on a text: `python -m rope_study.evaluate --checkpoint=... --text=wiki/`.

Reads a text in windows that each begin with BOS, and prints loss and perplexity a token.
"""

import math
import zlib

from absl import flags

from rope_study import command, data, sharding
from rope_study.training.evaluate import evaluate

LENGTH = 256


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags()
    text = "A file, folder, glob or JSONL; 'python': text that ships with Python."
    flags.DEFINE_string("text", "python", text)
    length = f"Tokens a window; {LENGTH}, or fewer if trained on fewer."
    flags.DEFINE_integer("length", None, length, 2)
    flags.DEFINE_integer("batch_size", 8, "Windows at once.", 1)
    windows = "Evenly spaced over the text; 0: all."
    flags.DEFINE_integer("windows", 512, windows, 0)


def run() -> None:
    """Evaluates the checkpoint and prints one line."""
    f = flags.FLAGS
    documents = data.pieces(data.read_documents(f.text))
    decoder, params, tokenizer = command.load_model()
    length = f.length or decoder.config.at_most_trained(LENGTH)
    tokens = data.tokenize(documents, tokenizer, progress=sharding.is_main_process())
    sharding.check_same({"the text": zlib.crc32(tokens.tobytes())})
    batches = data.held_out_batches(tokens, length, f.batch_size, tokenizer.bos, f.windows or None)
    result = evaluate(decoder, params, batches)
    if sharding.is_main_process():
        mean, error = result.mean_and_error()
        print(
            f"loss {mean:.4f} +- {error:.4f} nats/token (standard error over"
            f" {len(result.losses)} windows of {length} tokens), perplexity {math.exp(mean):.4f}"
        )


def main() -> None:
    """The command."""
    command.run_flags(run, define_flags, __doc__)


if __name__ == "__main__":
    main()
