"""What the commands share: flags and their help, and every end that is not the wanted one.

Wrong input, and what the system refuses, is one line and exit status 2; Ctrl-C and SIGTERM are one
line that says what is saved, and 130 or 143; training saves at SIGTERM, and ends with 0. Several
processes end together, with one line and one status. `rope-study study ...` is
`python -m rope_study.study ...`. Importing a command defines no flag.
"""

import contextlib
import importlib
import os
import re
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rope_study import checkpoints, files, sharding
from rope_study.data import Tokenizer
from rope_study.decoder import Decoder, attention, check_vocabulary, variants
from rope_study.errors import UserError, join, nearest
from rope_study.sharding import ending, preemption
from rope_study.training import settings

COMMANDS = ("study", "train", "prepare", "evaluate", "probe", "generate", "encodings", "plan")
HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")
STOPPING = (signal.SIGINT, signal.SIGTERM)
Resolved = TypeVar("Resolved")


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; its notes say what is saved."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def main() -> None:
    """The program `rope-study`: its first argument names a command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    usage = f"Usage: rope-study {'|'.join(COMMANDS)} [--help]"
    if name in HELP:
        print(usage)
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}.{nearest(name, COMMANDS)} {usage}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"rope-study {name}"]
    importlib.import_module(f"rope_study.{name}").main()


def run_config(
    run: Callable[[Resolved], Any],
    resolve: Callable[[Any], Resolved],
    about: str | None,
    define_flags: Callable[[], None] = lambda: None,
) -> None:
    """Parses --config, resolves it and calls run, which trains; does not return.

    Args:
      run: what the command does.
      resolve: the configuration's plain values; a UserError of it ends the command.
      about: the help text, usually the module's docstring.
      define_flags: defines what the command has beside --config.
    """
    before = set(flags.FLAGS)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    define_flags()
    config = config_flags.DEFINE_config_file(
        "config",
        default=None,
        help_string="A file of configs/; any field can follow, as in --config.train.steps=100.",
        lock_config=True,
    )

    def prepare() -> ConfigDict:
        if config.value is None:
            raise UserError("no configuration: give one, as in --config=configs/quickstart.py")
        return config.value.copy_and_resolve_references()  # raises what loading the file raised

    def start() -> Any:
        sharding.check_same({f"config.{path}": value for path, value in _leaves(config.value)})
        return run(resolve(config.value))

    def remedy(argument: str) -> str | None:
        by_flag = f"set --{argument}" if argument in set(flags.FLAGS) - before else None
        return by_flag or _config_setting(config.value, argument)

    new = set(flags.FLAGS) - before
    fields = "Fields of a configuration with their defaults:"
    saved = "what was saved stays; the same command goes on from there"
    help_text = lambda: f"{_help(about, new)}\n{fields}\n{_fields()}"  # noqa: E731
    _run(start, prepare, remedy, help_text, saved, trains=True)


def run_flags(
    run: Callable[[], Any],
    define_flags: Callable[[], None],
    about: str | None,
    remedies: Mapping[str, str] | None = None,
) -> None:
    """Parses the flags that the command defines and calls run(); does not return.

    Args:
      run: what the command does.
      define_flags: defines them.
      about: the help text, usually the module's docstring.
      remedies: what helps where an argument is wrong that no flag is named after.
    """
    before = set(flags.FLAGS)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    define_flags()

    def remedy(argument: str) -> str | None:
        by_flag = f"set --{argument}" if argument in flags.FLAGS else None
        return (remedies or {}).get(argument, by_flag)

    def start() -> Any:
        sharding.check_same({f"--{name}": flags.FLAGS[name].value for name in new})
        return run()

    new = set(flags.FLAGS) - before
    _run(start, lambda: None, remedy, lambda: _help(about, new), "nothing was written")


def define_model_flags(rotary: bool = True) -> None:
    """The flags of commands that read a trained model, see load_model; --rotary is one of them."""
    string = flags.DEFINE_string
    string("checkpoint", None, "Any path that checkpoints.load takes.")
    if rotary:
        string("rotary", None, "Run it with another encoding: 'p_rope(p=0.5)'.")
    string("tokenizer", None, "A tokenizer of another name or place than the checkpoint's.")
    string("dtype", None, "Of the parameters; as stored where not given.")
    string("mesh", "fsdp=-1", "Devices along data, fsdp, context, tensor.")
    flags.DEFINE_integer("step", None, "Which checkpoint of a run; the newest if not given.", 0)


def check_model_flags() -> None:
    """UserError where no checkpoint is named."""
    if flags.FLAGS.checkpoint is None:
        raise UserError("no checkpoint: give one, as in --checkpoint=runs/quickstart/nope_seed0")


def load_model(rotary: str | None = None) -> tuple[Decoder, dict, Tokenizer]:
    """The decoder, parameters and tokenizer that the flags of define_model_flags name.

    Args:
      rotary: another encoding to run it with.
    """
    check_model_flags()
    f = flags.FLAGS
    tokenizer = checkpoints.load_tokenizer(f.checkpoint, f.tokenizer)
    decoder, params = checkpoints.load(
        f.checkpoint, rotary=rotary, dtype=f.dtype, mesh=f.mesh, step=f.step
    )
    check_vocabulary(decoder.config, tokenizer)
    if sharding.is_main_process():
        about = f"{variants.describe(decoder.config)}, trained on {trained_length(decoder)}"
        backends = attention.in_words(decoder.config, decoder.layout)
        print(f"{f.checkpoint}: {about}; {backends}", file=sys.stderr)
    return decoder, params, tokenizer


def trained_length(decoder: Decoder) -> str:
    """What is known of the length that it was trained on, in words."""
    length = decoder.config.trained_length
    return "texts of unknown length" if length is None else f"{length:,} tokens a text"


@contextlib.contextmanager
def finish_first() -> Iterator[Callable[[], bool]]:
    """Signals only make what is given say True, so that work can end in order; a second one stops.

    What was begun is finished, and then the command ends as by the signal. Every process has to ask
    as often as the others; where one was told to stop, all are.
    """
    numbers: list[int] = []

    def remember(number: int, _: Any) -> None:
        numbers.append(number)
        _on_signals(_stop)
        print("\nstopping after this batch; once more: at once", file=sys.stderr)

    def stopped() -> bool:
        told = sharding.largest(numbers[0] if numbers else 0)
        if told and not numbers:
            numbers.append(told)
        return bool(told)

    _on_signals(remember)
    try:
        yield stopped
    finally:
        _on_signals(_stop)
    if numbers:
        stop = Stopped(numbers[0])
        stop.add_note("what was read until then is measured and written")
        raise stop


def _stop(number: int, _: Any) -> None:
    _on_signals(signal.SIG_DFL)  # a second signal ends the process whatever it does
    raise Stopped(number)


def _preempt(number: int, _: Any) -> None:
    """Lets training save; where none is under way nothing is lost."""
    _on_signals(signal.SIG_DFL)
    if not preemption.give():
        raise preemption.Preempted
    print("\nSIGTERM: saving after this step; once more: at once", file=sys.stderr)


def _on_signals(handler: Any) -> None:
    for number in STOPPING:
        signal.signal(number, handler)


def _listen(trains: bool) -> None:
    """Handles signals from now on; of several processes that train JAX handles SIGTERM."""
    signal.signal(signal.SIGINT, _stop)
    if not (trains and ending.is_watched()):
        signal.signal(signal.SIGTERM, _preempt if trains else _stop)


def _run(
    run: Callable[[], Any],
    prepare: Callable[[], Any],
    remedy: Callable[[str], str | None],
    help_text: Callable[[], str],
    saved: str,
    trains: bool = False,
) -> None:
    """Parses the flags, prepares and runs.

    `remedy` says what helps where an argument is wrong, `saved` what there is after an interruption
    that has no note of its own.
    """

    def start(_: Sequence[str]) -> None:
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        if not flags.FLAGS.debug:
            _silence_threads()
        try:
            sharding.start()
            ending.begin()
            _listen(trains)
            run()
            sys.stdout.flush()
            ending.finish()
        except KeyboardInterrupt as stop:
            _end(stop, saved)
        except BrokenPipeError:
            _nobody_reads()
        except OSError as error:
            _fail(files.explain(error), remedy, error)
        except UserError as error:
            _fail(error, remedy)
        except Exception as error:
            if not ending.is_watched():
                raise
            _leave(1, f"error: {type(error).__name__}: {error}", error, traceback.format_exc())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app.run(start, flags_parser=lambda argv: _parse(argv, prepare, help_text))


def _parse(
    argv: Sequence[str], prepare: Callable[[], Any], help_text: Callable[[], str]
) -> Sequence[str]:
    if set(HELP) & set(argv):
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:
            _nobody_reads()
        sys.exit(0)
    try:
        rest = flags.FLAGS([re.sub("(?<=config=)~.*", _at_home, word) for word in argv])
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; settings start with --")
        prepare()
    # A config file is Python, and ml_collections passes on what it raises for unknown fields,
    # wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error, lambda _: None)
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file it writes, and of every error that it raises too.
        logging.set_verbosity(logging.FATAL)
    return rest


def _at_home(path: re.Match[str]) -> str:
    return os.path.expanduser(path[0])  # no shell does behind an equals sign


def _silence_threads() -> None:
    """What the threads of Orbax and TensorStore cannot do any more once one of them has failed.

    The first error is raised where their work is waited for.
    """
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None


def _nobody_reads() -> NoReturn:
    """Ends where the reader of what is printed, such as `head`, has had enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(128 + signal.SIGPIPE, "")


def _fail(
    error: Exception, remedy: Callable[[str], str | None], cause: Exception | None = None
) -> NoReturn:
    """Prints one line and ends with 2; with --debug raises the error, or its cause."""
    debug = flags.FLAGS.is_parsed() and flags.FLAGS.debug
    if debug and not ending.is_watched():
        raise cause or error
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    argument = getattr(error, "argument", None)
    if isinstance(error, UserError) and (helps := argument and remedy(argument)):
        message = join(error.problem, helps)
    details = "".join(traceback.format_exception(cause or error)) if debug else ""
    _leave(2, f"error: {message}", error, details)


def _end(stop: KeyboardInterrupt, saved: str) -> NoReturn:
    """Prints one line that says what is saved, and ends as a shell expects it of a signal.

    After a preemption with 0, as nothing failed.
    """
    status = 128 + getattr(stop, "number", signal.SIGINT)
    what = f"stopped by {signal.Signals(status - 128).name}"
    if isinstance(stop, preemption.Preempted):
        status, what = 0, "preempted"
    print(file=sys.stderr)  # after the line that a progress bar or ^C is on
    _leave(status, f"{what}: {'; '.join(getattr(stop, '__notes__', [saved]))}")


def _leave(
    status: int, message: str, error: BaseException | None = None, details: str = ""
) -> NoReturn:
    """Prints one line and ends, with all processes of the run."""
    line = " ".join(message.split())
    if ending.is_watched():
        _on_signals(signal.SIG_DFL)
        ending.fail(ending.End(status, line, _comes_from_jax(error)), details)
    if line:
        print(line, file=sys.stderr)
    sys.exit(status)


def _comes_from_jax(error: BaseException | None) -> bool:
    """Whether a program on the devices failed, as it does where another process is gone."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


# --- help -------------------------------------------------------------------------------------


def _help(about: str | None, new: set[str]) -> str:
    """What the command does, and its flags with their defaults."""
    lines = [f"{about}\nFlags with their defaults:"]
    for flag in (flags.FLAGS[name] for name in flags.FLAGS if name in new):
        default = "" if flag.default is None else f"={flag.default_as_str}"
        lines.append(_entry(f"--{flag.name}{default}", flag.help))
    return "\n".join(lines)


def _fields() -> str:
    """Every field of a configuration with its default and what it means."""
    defaults, meanings = settings.default(), settings.meanings()
    return "\n".join(
        _entry(f"--config.{path}={value!r}", meanings.get(path, ""))
        for path, value in _leaves(defaults)
    )


def _entry(flag: str, meaning: str | None) -> str:
    indented = textwrap.fill(meaning or "", 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {flag}\n{indented}" if meaning else f"  {flag}"


def _config_setting(config: ConfigDict, argument: str) -> str | None:
    """Where a configuration holds an argument: "length" is config.data.length."""
    # A size is no rule of the same name, unless the argument says that it is.
    rules = argument.startswith("rules.")
    names = (path for path, _ in _leaves(config) if path.startswith("rules.") == rules)
    paths = [path for path in names if f".{path}".endswith(f".{argument}")]
    return f"set {' or '.join(f'config.{path}' for path in paths)}" if paths else None


def _leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Every field by its path, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{path}", leaf) for path, leaf in _leaves(value))
        else:
            yield name, value
