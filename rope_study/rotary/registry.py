"""Encodings by name: what a configuration or the command line may write.

That is a call with literal arguments, "p_rope(p=0.5, theta=500_000)", or `module:name` for a
function or an Encoding class of the user's own. `python -m rope_study.encodings` lists them all.
"""

import importlib
import inspect
from typing import Any, cast

from rope_study.errors import UserError
from rope_study.registry import check_arguments, read_call, spell

# Imported so that they are registered.
from rope_study.rotary import basic, fourier, learned, scaled  # noqa: F401
from rope_study.rotary.encoding import ENCODINGS, Encoding, Rotary


def parse(text: str | Rotary, argument: str | None = None) -> Rotary:
    """The encoding that a text names; a function or an Encoding comes back as it is.

    Raises:
      UserError: unknown name (the nearest is suggested), unknown or wrong parameter, not a call
        with literal arguments, or a module:name that cannot be imported.
    """
    if not isinstance(text, str):
        return text
    if is_import(text):
        return _import(text, argument)
    return ENCODINGS.make(text, argument)


def is_import(text: str) -> bool:
    """Whether the text names something to import, module:name or module:Name(arguments)."""
    return ":" in text.partition("(")[0]


def name_of(encoding: Rotary) -> str:
    """For tables and folders; `parse` reads it back: an Encoding's own name, or module:name."""
    if isinstance(encoding, Encoding):
        known = ENCODINGS.get(encoding.kind) is type(encoding)
        if known and type(encoding).__module__.startswith("rope_study."):
            return encoding.name
        return spell(_path(type(encoding)), **encoding.arguments())
    return _path(encoding if inspect.isroutine(encoding) else type(encoding))


def _path(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _import(text: str, argument: str | None) -> Rotary:
    module, _, call = text.partition(":")
    name, positional, named = read_call(call, "encoding", argument)
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"rotary function {text!r} cannot be imported ({error}): write module:function,"
            " with the module on PYTHONPATH",
            argument,
        ) from error
    if inspect.isclass(imported):
        if issubclass(imported, Encoding):
            check_arguments(imported, name, positional, named, argument)
            return imported(*positional, **named)
        raise UserError(f"{text!r} is a class, but no rotary.Encoding", argument)
    if not callable(imported) or positional or named:
        raise UserError(
            f"{text!r} is neither a function (x, positions) -> x nor an Encoding class", argument
        )
    return cast(Rotary, imported)
