"""Hostile values: what may stand by mistake where a call or a command line has a good one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray

NUMBERS = [np.nan, np.inf, -np.inf, -1, 0, 2**63, 1e308, True, "3", None]
NAMES = ["", "no such name", "with spaces and $x^$", 3]


def hostile(value: Any) -> Iterator[Any]:
    """By the kind of a good value what is wrong, or may be, in its place; nothing for objects."""
    match value:
        case bool():
            yield from ("yes", 2)
        case int() | float():
            yield from NUMBERS
        case str():
            yield from NAMES
        case Path():
            yield from _paths(value)
        case np.ndarray():
            yield from _arrays(value)
        case xarray.Dataset() | xarray.DataArray():
            yield from _datasets(value)
        case list() | tuple():
            yield from ([], 3, None)
            for i, item in enumerate(value):
                yield from ([*value[:i], bad, *value[i + 1 :]] for bad in hostile(item))
        case dict():
            yield from ({}, None, list(value))
            for name, item in value.items():
                yield from (value | {name: bad} for bad in hostile(item))


def _paths(good: Path) -> Iterator[Any]:
    """Missing, below a file, full of files, and where nobody can write, not even root."""
    file = good.parent / "a file"
    file.write_text("x")
    full = good.parent / "full"
    full.mkdir(exist_ok=True)
    (full / "thesis.tex").write_text("x")
    yield from ("", None, 3, file, file / "below", full, "/proc/x", f"{file}\0")
    yield from (good.with_name("x" * 300), good.parent / "not there" / good.name)


def _arrays(good: np.ndarray) -> Iterator[Any]:
    yield from (good[0], good[None], good[:0], good.astype(object), good.astype(str), None)
    yield from (good[..., :0], 3)
    for bad in (np.nan, np.inf, -1, 2**40):
        array = good.astype(np.float64 if good.dtype.kind == "f" or bad not in (-1, 2**40) else int)
        array.flat[-1] = bad
        yield array


def _datasets(good: xarray.Dataset | xarray.DataArray) -> Iterator[Any]:
    foreign = xarray.DataArray(np.ones((2, 3)), dims=("x", "y"), name="foreign")
    yield from (xarray.Dataset(), foreign.to_dataset(), foreign, None, 3)
    yield from (good.isel({dim: 0}, drop=True) for dim in good.dims)
    yield from (good.isel({dim: slice(0)}) for dim in good.dims)
    yield good.drop_attrs()
    yield good.drop_vars([name for name in good.coords if name not in good.dims])
