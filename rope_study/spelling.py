"""Constructors by name: "p_rope(p=0.75)" in a config becomes a call; nothing is eval'd.

A spelling is a registered name or a call of one with literal arguments. Whatever else it is, the
error names the nearest name or parameter and the setting.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rope_study.errors import UserError, nearest


def call(spelling: str, table: Mapping[str, Callable[..., Any]], what: str, where: str) -> Any:
    """What the constructor that `spelling` names returns.

    Args:
      spelling: "rope" or "p_rope(p=0.75, theta=10_000)".
      table: the constructors by name.
      what: what they make, for errors: "encoding".
      where: the setting, for errors: "set config.model.rotary".

    Raises:
      UserError: an unknown name, an unknown, missing or wrong parameter, or no call at all.
    """
    name, args, kwargs = read(spelling, what, where)
    if name not in table:
        raise UserError(
            f"unknown {what} {name!r}.{nearest(name, table)} Known: {', '.join(table)}; {where}"
        )
    make = table[name]
    signature = inspect.signature(make)
    takes = f"{name}({', '.join(map(str, _without_annotations(signature)))})"
    for parameter in kwargs:
        if parameter not in signature.parameters:
            raise UserError(
                f"{name} has no parameter {parameter!r}."
                f"{nearest(parameter, signature.parameters)} It takes {takes}; {where}"
            )
    try:
        signature.bind(*args, **kwargs)
        return make(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{error}; {where}") from error
    except TypeError as error:
        raise UserError(f"{spelling}: {error}. It takes {takes}; {where}") from error


def spell(name: str, **values: float | bool | tuple | None) -> str:
    """The canonical spelling of a call, which `call` reads back to the same values.

    Values are numbers, booleans or tuples of them; None, which only a default may be, is left out.
    """
    given = {key: value for key, value in values.items() if value is not None}
    return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in given.items())})"


def _literal(value: float | bool | tuple) -> str:
    if isinstance(value, tuple):
        items = ", ".join(map(_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, bool):
        return repr(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_numbers(name: str, **values: Any) -> None:
    """Refuses parameters that are no plain numbers."""
    for parameter, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}: {parameter}={value!r} must be a number")


def read(spelling: str, what: str = "spelling", where: str = "") -> tuple[str, list, dict]:
    """Name, arguments and named arguments of a spelling; see `call`."""
    try:
        node = ast.parse(spelling.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        # keyword.arg is None for **mappings, which are refused like any other expression.
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and all(keyword.arg for keyword in node.keywords)
        ):
            args = [ast.literal_eval(arg) for arg in node.args]
            return node.func.id, args, {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError):
        pass
    raise UserError(
        f"{what} {spelling!r} is not understood: write a name with literal arguments,"
        f" such as rope or p_rope(p=0.75, theta=10_000); {where}"
    )


def _without_annotations(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p.replace(annotation=p.empty) for p in signature.parameters.values()]
