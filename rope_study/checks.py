"""Values by their annotations: what is no such number, text, list, path or dataset is refused.

Functions that users call are `@checked`, dataclasses call `check_fields`. What is allowed within
a type - a range, one of some names - is each one's own.
"""

import collections.abc
import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rope_study.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])

MOST = 2**32 - 1  # of counts, places and seeds
LARGEST = float(np.finfo(np.float32).max)  # decoders compute in f32
ARRAY = set(typing.get_args(ArrayLike)) or {ArrayLike}
PACKAGES = ("rope_study.", "xarray.")  # whose classes are looked at
WORDS = {
    int: "a whole number from 0 to 2^32-1",
    float: f"a finite number, at most {LARGEST:.2g}",
    bool: "True or False",
    str: "a text",
    os.PathLike: "a path",
}


def checked(function: Function) -> Function:
    """A decorator: refuses arguments that are not what the annotations say; see `check`.

    Raises:
      UserError: naming the argument, before the function begins.
    """
    signature, expected = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        for name, value in signature.bind(*args, **named).arguments.items():
            if value is not signature.parameters[name].default:
                check(name, value, expected.get(name))
        return function(*args, **named)

    return typing.cast(Function, run)


def check_fields(instance: Any, owner: str = "") -> None:
    """Refuses a dataclass whose fields are not what their annotations say."""
    for field in dataclasses.fields(instance):
        check(field.name, getattr(instance, field.name), field.type, owner)


def check(name: str, value: Any, expected: Any, owner: str = "") -> None:
    """Refuses a value that is not of the annotated type.

    int is a whole number from 0 to MOST, float a finite one that f32 holds, ArrayLike finite
    numbers, at least one; lists, tuples of any length and dictionaries are looked at item by item.

    Args:
      name: of the argument.
      value: what it was given.
      expected: the annotation.
      owner: of the argument, for errors.

    Raises:
      UserError: what it has to be.
    """
    if fault := _fault(value, expected):
        problem = f"{name}{fault.place}={_short(fault.value)} must be {fault.allowed}"
        raise UserError(f"{owner}: {problem}" if owner else problem, name)


class _Fault(NamedTuple):
    """Where in a value something is wrong, such as "[1]", what is there, and what may be."""

    place: str
    value: Any
    allowed: str


def _fault(value: Any, expected: Any) -> _Fault | None:
    """What is wrong with a value, where something is."""
    faults = [_fault_of(value, option) for option in _options(expected)]
    if not all(faults):
        return None
    deepest = max((fault for fault in faults if fault), key=lambda fault: len(fault.place))
    alternatives = (fault.allowed for fault in faults if fault and fault.place == deepest.place)
    return deepest._replace(allowed=" or ".join(filter(None, alternatives)))


def _options(expected: Any) -> list[Any]:
    """The types of a union, of which ArrayLike is one although it is a union itself."""
    if typing.get_origin(expected) not in (typing.Union, types.UnionType):
        return [expected]
    options = list(typing.get_args(expected))
    if not set(options) >= ARRAY:
        return options
    return [ArrayLike, *(option for option in options if option not in ARRAY)]


def _fault_of(value: Any, expected: Any) -> _Fault | None:
    """The same of one type, which is no union."""
    kind, items = typing.get_origin(expected) or expected, typing.get_args(expected)
    if kind is collections.abc.Sequence or items[1:] == (...,):
        listed = np.iterable(value) and not isinstance(value, str | Mapping)
        if not (isinstance(value, tuple) if kind is tuple else listed):
            return _Fault("", value, "a tuple" if kind is tuple else "a list")
        if items[0] is str and all(isinstance(item, str) for item in value):
            return None  # a corpus has many documents
        return _first_fault(enumerate(value), items[0])
    if kind is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            return _Fault("", value, "a dictionary")
        return _first_fault(value.items(), items[1])
    if expected == ArrayLike:
        return None if _finite(value) else _Fault("", value, "finite numbers")
    if kind in WORDS:
        return None if _fits(value, kind) else _Fault("", value, WORDS[kind])
    a_class = isinstance(kind, type) and kind.__module__.startswith(PACKAGES)
    if (a_class or kind is types.NoneType) and not isinstance(value, kind):
        return _Fault("", value, f"a {kind.__name__}" if a_class else "")
    return None


def _first_fault(items: Iterable[tuple[Any, Any]], expected: Any) -> _Fault | None:
    """Of the items of a list or dictionary, by their places in it."""
    for place, item in items:
        if fault := _fault(item, expected):
            return fault._replace(place=f"[{place!r}]{fault.place}")
    return None


def _fits(value: Any, kind: type) -> bool:
    """Whether a value is of one of WORDS; NumPy's numbers are numbers too."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or np.ndim(value):
        return False
    if kind is int:
        return _finite(value, "iu") and 0 <= int(value) <= MOST
    return _finite(value) and abs(float(value)) <= LARGEST


def _finite(value: Any, kinds: str = "iuf") -> bool:
    """Whether it is, or makes, an array of finite numbers of these kinds, at least one."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # rows of different lengths
        return False
    return array.dtype.kind in kinds and bool(array.size) and bool(np.isfinite(array).all())


def _short(value: Any) -> str:
    """On one line, and not a whole array."""
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype}{list(value.shape)}"
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
