"""Encodings by name: what a config or the command line may write, parsed strictly, never eval'd.

A spelling is a name, `rope`, or a call with literal arguments, `p_rope(p=0.5, theta=500_000)`;
`module:function` names a function of the user's own, `(x, positions) -> x`.
"""

import importlib
from collections.abc import Callable

from rope_study import rotary
from rope_study.errors import UserError
from rope_study.spelling import call

# A new encoding is one function in rotary.py and one line here.
ENCODINGS: dict[str, Callable[..., rotary.Encoding]] = {
    "rope": rotary.rope,
    "nope": rotary.nope,
    "p_rope": rotary.p_rope,
    "reversed_p_rope": rotary.reversed_p_rope,
    "partial_rope": rotary.partial_rope,
}

WHERE = "set config.model.rotary or config.encodings"


def parse(spelling: str | rotary.Rotary) -> rotary.Rotary:
    """The encoding that a spelling names; a function or an Encoding comes back as it is.

    Raises:
      UserError: unknown name (the nearest is suggested), unknown or wrong parameter, not a call
        with literal arguments, or a module:function that cannot be imported.
    """
    if callable(spelling):
        return spelling
    if ":" in spelling:
        return _import_function(spelling)
    return call(spelling, ENCODINGS, "encoding", WHERE)


def name_of(encoding: rotary.Rotary) -> str:
    """The name for tables and folders: an Encoding's own, or module:function."""
    if isinstance(encoding, rotary.Encoding):
        return encoding.name
    module = getattr(encoding, "__module__", type(encoding).__module__)
    return f"{module}:{getattr(encoding, '__qualname__', type(encoding).__qualname__)}"


def _import_function(spelling: str) -> rotary.Rotary:
    module, _, attribute = spelling.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"rotary function {spelling!r} cannot be imported ({error}): write module:function,"
            f" with the module on PYTHONPATH; {WHERE}"
        ) from error
    if not callable(function):
        raise UserError(f"{spelling!r} is not a function (x, positions) -> x; {WHERE}")
    return function
