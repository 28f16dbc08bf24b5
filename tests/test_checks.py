"""Values by their annotations: what passes, what does not, and how it is said."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike

from rope_study.checks import MOST, check, checked
from rope_study.decoder import LayerSpec
from rope_study.errors import UserError
from rope_study.files.paths import to_path


@pytest.mark.parametrize(
    "value, expected",
    [
        (0, int), (MOST, int), (np.int64(3), int), (np.uint8(3), int), (jnp.asarray(3), int),
        (3, float), (np.float32(0.5), float), (-1e38, float), (None, int | None),
        ([1, 2], Sequence[int]), (range(3), Sequence[int]), (np.arange(3), Sequence[int]),
        (3, int | Sequence[int]), ((0.1, 1), tuple[float, ...]), ({"a": [1]}, Mapping[str, list]),
        ([[1, 2], [3, 4]], ArrayLike), (None, ArrayLike | None), (LayerSpec(), LayerSpec),
        (LayerSpec(), LayerSpec | ArrayLike), ([1.0], LayerSpec | ArrayLike),
    ],
)  # fmt: skip
def test_what_passes(value, expected):
    check("x", value, expected)


@pytest.mark.parametrize(
    "value, expected, message",
    [
        (-1, int, r"x=-1 must be a whole number from 0 to 2\^32-1"),
        (MOST + 1, int, r"x=4294967296 must be a whole number"),
        (True, int, r"x=True must be a whole"), (1.0, int, r"x=1\.0 must be a whole"),
        (np.arange(3), int, r"x=array\(\[0, 1, 2\]\) must be a whole"),
        (np.nan, float, r"x=nan must be a finite number"), ("3", float, r"x='3' must be a finite"),
        (1e39, float, r"x=1e\+39 must be a finite number, at most 3\.4e\+38"),
        (3, str, r"x=3 must be a text"), (1, bool, r"x=1 must be True or False"),
        ([1, "2"], Sequence[int], r"x\[1\]='2' must be a whole"),
        ("12", Sequence[int], r"x='12' must be a list"),
        ([1.5], int | Sequence[int], r"x\[0\]=1\.5 must be a whole"),
        ([0.5], tuple[float, ...], r"x=\[0\.5\] must be a tuple"),
        ({"a": 1}, Mapping[str, str], r"x\['a'\]=1 must be a text"),
        ([[1], [2, 3]], ArrayLike, r"must be finite numbers"), ([], ArrayLike, r"must be finite"),
        (3, LayerSpec, r"x=3 must be a LayerSpec"),
        ("rope", LayerSpec | ArrayLike, r"x='rope' must be .*finite numbers"),
    ],
)  # fmt: skip
def test_what_does_not(value, expected, message):
    with pytest.raises(UserError, match=message) as caught:
        check("x", value, expected)
    assert caught.value.argument == "x"


def test_a_checked_function_is_called_as_before():
    """Defaults are what they are, and missing arguments are Python's own error."""

    @checked
    def power(base: float, exponent: int = -2) -> float:
        """Of a number."""
        return base**exponent

    assert power(2.0) == 0.25 and power(2.0, exponent=3) == 8 and power.__doc__ == "Of a number."
    with pytest.raises(TypeError, match="missing"):
        power()
    with pytest.raises(UserError, match=r"exponent=-1 must be a whole number"):
        power(2.0, -1)


@pytest.mark.parametrize("written", ["", None, 3, "a\0b", "x" * 300, "\ud800"])
def test_what_no_file_can_be_called(written):
    with pytest.raises(UserError, match="is no path"):
        to_path(written)


def test_home_is_expanded_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert to_path("~/x") == tmp_path / "x"
    assert str(to_path("~nobody_at_all/x")) == "~nobody_at_all/x"
