"""Text from a trained model: `python -m rope_study.generate --checkpoint=... --text="To be"`."""

from absl import flags

from rope_study import command, sharding
from rope_study.decoder.sampling import generate


def define_flags() -> None:
    """The command's flags."""
    command.define_model_flags()
    prompt = "A prompt; may be given again."
    flags.DEFINE_multi_string("text", ["Once upon a time"], prompt)
    flags.DEFINE_integer("tokens", 64, "How many to add.")
    temperature = "0 takes the likeliest token, 1 samples."
    flags.DEFINE_float("temperature", 0.0, temperature)
    flags.DEFINE_integer("seed", 0, "Of the samples.")


def run() -> None:
    """Prints every text with its continuation."""
    f = flags.FLAGS
    decoder, params, tokenizer = command.load_model(f.rotary)
    texts = generate(
        decoder, params, tokenizer, f.text, tokens=f.tokens, temperature=f.temperature, seed=f.seed
    )
    if sharding.is_main_process():
        print("\n\n".join(texts))


def main() -> None:
    """The command."""
    command.run_flags(run, define_flags, __doc__)


if __name__ == "__main__":
    main()
