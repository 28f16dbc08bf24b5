"""Text from a trained model.

python -m rope_study.generate --checkpoint=gemma-2b --text="Once upon a time" --tokens=64
"""

from absl import flags

from rope_study import command
from rope_study.decoder.sampling import generate
from rope_study.sharding import is_main_process


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags()
    flags.DEFINE_multi_string("text", ["Once upon a time"], "A prompt; may be given again.")
    flags.DEFINE_integer("tokens", 64, "How many to add.")
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token, 1 samples.")
    flags.DEFINE_integer("seed", 0, "Of the samples.")


def main() -> None:
    """Prints every text with its continuation."""
    f = flags.FLAGS
    decoder, params, tokenizer = command.load_model()
    made = generate(
        decoder, params, tokenizer, f.text, tokens=f.tokens, temperature=f.temperature, seed=f.seed
    )
    if is_main_process():
        print("\n\n".join(made))


if __name__ == "__main__":
    define_flags()
    command.run_flags(main)
