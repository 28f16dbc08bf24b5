"""Running a command: its flags, and every wrong input as one line with exit status 2."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rope_study import checkpoints, sharding
from rope_study.data import Tokenizer
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.training import settings

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    default=None,
    help_string="A file of configs/; any field can follow, as in --config.train.steps=100."
    " All fields with their defaults: rope_study/config.py.",
    lock_config=True,
)


def run(main: Callable[[ConfigDict], None]) -> None:
    """Parses --config and calls main(config); does not return."""
    _run(lambda: main(_CONFIG.value), _check_config)


def run_flags(main: Callable[[], None]) -> None:
    """Parses the flags that the command has defined and calls main(); does not return."""
    del flags.FLAGS.config
    _run(main, lambda: None)


def define_model_flags() -> None:
    """The flags of commands that read a trained model; see load_model."""
    flags.DEFINE_string("checkpoint", None, "Any path that checkpoints.load takes.")
    flags.DEFINE_string("rotary", None, "Run it with another encoding: 'p_rope(p=0.5)'.")
    flags.DEFINE_string("dtype", None, "Of the parameters; as stored where not given.")
    flags.DEFINE_string("mesh", "fsdp=-1", "Devices along data, fsdp, tensor.")


def check_model_flags() -> None:
    """UserError where no checkpoint is named."""
    if flags.FLAGS.checkpoint is None:
        raise UserError("no checkpoint; give one, as in --checkpoint=runs/quickstart/nope")


def load_model() -> tuple[Decoder, dict, Tokenizer]:
    """The decoder, parameters and tokenizer that the flags of define_model_flags name."""
    check_model_flags()
    f = flags.FLAGS
    decoder, params = checkpoints.load(f.checkpoint, rotary=f.rotary, dtype=f.dtype, mesh=f.mesh)
    return decoder, params, checkpoints.load_tokenizer(f.checkpoint)


def _run(main: Callable[[], None], check: Callable[[], None]) -> None:
    def start(_: Sequence[str]) -> None:
        try:
            sharding.start()
            main()
        except UserError as error:
            _fail(error)

    app.run(start, flags_parser=lambda argv: _parse(argv, check))


def _check_config() -> None:
    if _CONFIG.value is None:
        raise UserError("no configuration; give one, as in --config=configs/quickstart.py")
    settings.check(_CONFIG.value)


def _parse(argv: Sequence[str], check: Callable[[], None]) -> Sequence[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; settings start with --")
        check()
    # A config file is Python, and ml_collections passes on what it raises for unknown fields,
    # wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
    return rest


def _fail(error: Exception) -> None:
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
