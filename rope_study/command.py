"""What the commands share: flags, and every wrong input as one line with exit status 2.

`rope-study study ...` is `python -m rope_study.study ...`. Importing a command defines no flag.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rope_study import checkpoints, sharding
from rope_study.data import Tokenizer
from rope_study.decoder import Decoder
from rope_study.errors import UserError, nearest
from rope_study.probes.run import describe

COMMANDS = ("study", "train", "evaluate", "probe", "generate", "encodings")
Resolved = TypeVar("Resolved")


def main() -> None:
    """The program `rope-study`: its first argument names a command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(
            f"error: unknown command {name!r}.{nearest(name, COMMANDS)} Usage: rope-study"
            f" {'|'.join(COMMANDS)} [--help]",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv[:2] = [f"rope-study {name}"]
    importlib.import_module(f"rope_study.{name}").main()


def run_config(
    run: Callable[[Resolved], Any], resolve: Callable[[Any], Resolved], about: str | None
) -> None:
    """Parses --config, resolves it and calls run; does not return.

    Args:
      run: what the command does.
      resolve: the configuration's plain values; a UserError of it ends the command.
      about: the help text, usually the module's docstring.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    config = config_flags.DEFINE_config_file(
        "config",
        default=None,
        help_string="A file of configs/; any field can follow, as in --config.train.steps=100."
        " All fields with their defaults: rope_study/training/settings.py.",
        lock_config=True,
    )

    def prepare() -> ConfigDict:
        if config.value is None:
            raise UserError("no configuration: give one, as in --config=configs/quickstart.py")
        return config.value.copy_and_resolve_references()  # raises what loading the file raised

    def start() -> Any:
        return run(resolve(config.value))

    _run(start, prepare, lambda argument: _config_setting(config.value, argument), about)


def run_flags(run: Callable[[], Any], define_flags: Callable[[], None], about: str | None) -> None:
    """Parses the flags that the command defines and calls run(); does not return."""
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    define_flags()
    _run(run, lambda: None, lambda name: f"--{name}" if name in flags.FLAGS else None, about)


def define_model_flags() -> None:
    """The flags of commands that read a trained model; see load_model."""
    string = flags.DEFINE_string
    string("checkpoint", None, "Any path that checkpoints.load takes.")
    string("rotary", None, "Run it with another encoding: 'p_rope(p=0.5)'.")
    string("dtype", None, "Of the parameters; as stored where not given.")
    string("mesh", "fsdp=-1", "Devices along data, fsdp, tensor.")


def check_model_flags() -> None:
    """UserError where no checkpoint is named."""
    if flags.FLAGS.checkpoint is None:
        raise UserError("no checkpoint: give one, as in --checkpoint=runs/quickstart/nope_seed0")


def load_model() -> tuple[Decoder, dict, Tokenizer]:
    """The decoder, parameters and tokenizer that the flags of define_model_flags name."""
    check_model_flags()
    f = flags.FLAGS
    decoder, params = checkpoints.load(f.checkpoint, rotary=f.rotary, dtype=f.dtype, mesh=f.mesh)
    if sharding.is_main_process():
        about = f"{describe(decoder.config)}, trained on {trained_length(decoder)}"
        print(f"{f.checkpoint}: {about}", file=sys.stderr)
    return decoder, params, checkpoints.load_tokenizer(f.checkpoint)


def trained_length(decoder: Decoder) -> str:
    """What is known of the length that it was trained on, in words."""
    length = decoder.config.trained_length
    return "texts of unknown length" if length is None else f"{length:,} tokens a text"


def check_new_folder(path: str | None, argument: str) -> Path:
    """The folder to write; UserError where none is named or it has files."""
    if path is None:
        raise UserError("no folder for the results: give a new one", argument)
    folder = Path(path).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; nothing was changed", argument)
    return folder


def _run(
    run: Callable[[], Any],
    prepare: Callable[[], Any],
    setting: Callable[[str], str | None],
    about: str | None,
) -> None:
    """Parses the flags, prepares and runs; `setting` says where an argument is set."""

    def start(_: Sequence[str]) -> None:
        try:
            sharding.start()
            run()
        except UserError as error:
            _fail(error, setting)

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    sys.modules["__main__"].__doc__ = about  # what --help begins with
    app.run(start, flags_parser=lambda argv: _parse(argv, prepare))


def _parse(argv: Sequence[str], prepare: Callable[[], Any]) -> Sequence[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; settings start with --")
        prepare()
    # A config file is Python, and ml_collections passes on what it raises for unknown fields,
    # wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error, lambda _: None)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
    return rest


def _fail(error: Exception, setting: Callable[[str], str | None]) -> None:
    if flags.FLAGS.is_parsed() and flags.FLAGS.debug:
        raise error
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    argument = getattr(error, "argument", None)
    where = setting(argument) if argument else None
    ending = f"; set {where}" if where else ""
    print(f"error: {' '.join(message.split())}{ending}", file=sys.stderr)
    sys.exit(2)


def _config_setting(config: ConfigDict, argument: str) -> str | None:
    """Where a configuration holds an argument: "length" is config.data.length."""
    paths = [path for path in _paths(config) if f".{path}".endswith(f".{argument}")]
    return " or ".join(f"config.{path}" for path in paths) or None


def _paths(config: ConfigDict) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from (f"{name}.{path}" for path in _paths(value))
        else:
            yield name
