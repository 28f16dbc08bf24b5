"""Encodings by name: what a config or the command line may write, parsed strictly, never eval'd.

A spelling is a name, `rope`, or a call with literal arguments, `p_rope(p=0.5, theta=500_000)`;
`module:function` names a function of the user's own, `(x, positions) -> x`.
"""

import ast
import importlib
import inspect
from collections.abc import Callable

from rope_study import rotary
from rope_study.errors import UserError, nearest

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
    name, args, kwargs = _parse_call(spelling)
    if name not in ENCODINGS:
        raise UserError(
            f"unknown encoding {name!r}.{nearest(name, ENCODINGS)}"
            f" Known: {', '.join(ENCODINGS)}; {WHERE}"
        )
    return _build(name, args, kwargs)


def name_of(encoding: rotary.Rotary) -> str:
    """The name for tables and folders: an Encoding's own, or module:function."""
    if isinstance(encoding, rotary.Encoding):
        return encoding.name
    module = getattr(encoding, "__module__", type(encoding).__module__)
    return f"{module}:{getattr(encoding, '__qualname__', type(encoding).__qualname__)}"


def _parse_call(spelling: str) -> tuple[str, list, dict]:
    try:
        node = ast.parse(spelling.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            args = [ast.literal_eval(arg) for arg in node.args]
            # A bare ** has no name; literal_eval of its value would hide that.
            if all(keyword.arg for keyword in node.keywords):
                return node.func.id, args, {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError):
        pass
    raise UserError(
        f"encoding {spelling!r} is not understood: write a name with literal arguments,"
        f" such as rope or p_rope(p=0.75, theta=10_000); {WHERE}"
    )


def _build(name: str, args: list, kwargs: dict) -> rotary.Encoding:
    make = ENCODINGS[name]
    signature = inspect.signature(make)
    for parameter in kwargs:
        if parameter not in signature.parameters:
            raise UserError(
                f"{name} has no parameter {parameter!r}."
                f"{nearest(parameter, signature.parameters)} It takes {name}{signature}; {WHERE}"
            )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{name}: {error}. It takes {name}{signature}; {WHERE}") from error
    for parameter, value in bound.arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}: {parameter}={value!r} must be a number; {WHERE}")
    try:
        return make(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{error}; {WHERE}") from error


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
