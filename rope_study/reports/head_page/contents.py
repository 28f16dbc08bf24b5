"""What the page shows, as plain JSON values, and the check that its sources fit each other."""

import base64
import math
from collections.abc import Sequence

import numpy as np
import xarray

from rope_study.errors import UserError
from rope_study.probes.head_patterns import MEANINGS, POSITIONAL

BY_HEAD = ("layer", "head")
DIGITS = 6  # significant ones of norms and scores: more than a reader sees, half the bytes
LEVELS = 255  # of a weight, in 8 bits


def contents(
    usage: xarray.Dataset, named: xarray.Dataset, maps: Sequence[xarray.DataArray]
) -> dict:
    """The data of the page; arguments as write_page has them.

    Returns:
      kinds[kind]; meanings[kind], what its score is; threshold, above which it names a head;
      name[layer][head], score[layer][head], scores[layer][head][kind];
      q[layer][head][pair], k[layer][kv_head][pair], frequencies[layer][pair] in rad/token (None:
      not known); first: the layer and head to open with; texts: for each its label, its tokens
      queries[T] and keys[T], and weights[layer][head], the bytes [query, key] of
      round(255 weight) in base64. A layer's lists are as long as it has heads and pairs.
    """
    q = _read(usage, "q", (*BY_HEAD, "pair"), "usage")
    k = _read(usage, "k", ("layer", "kv_head", "pair"), "usage")
    frequencies = _read(usage, "inverse_frequency", ("layer", "pair"), "usage")
    name = _read(named, "name", BY_HEAD, "named")
    score = _read(named, "score", BY_HEAD, "named")
    scores = _read(named, "scores", (*BY_HEAD, "kind"), "named")
    sizes = q.shape[:2]
    _check_sizes("named.name", name.shape, sizes)
    heads, kv_heads = _present(q), _present(k)
    for layer, (n, groups) in enumerate(zip(heads, kv_heads, strict=True)):
        if not groups or n % groups:
            raise UserError(
                f"usage: layer {layer} has {n} heads and {groups} key-value heads;"
                " each key-value head must serve as many heads as the others"
            )
    if not maps:
        raise UserError("maps is empty: give the attention on at least one text")
    pairs = _present(np.moveaxis(q, 2, 1))
    return {
        "kinds": [str(kind) for kind in named["kind"].values],
        "meanings": [
            MEANINGS[str(kind)].format(window=named.attrs["window"])
            for kind in named["kind"].values
        ],
        "threshold": float(named.attrs["threshold"]),
        "first": _first(name, score),
        "name": [[str(kind) for kind in row[:n]] for row, n in zip(name, heads, strict=True)],
        "score": _trim(score, heads),
        "scores": _trim(scores, heads),
        "q": _trim(q, heads, pairs),
        "k": _trim(k, kv_heads, pairs),
        "frequencies": _trim(frequencies, pairs),
        "texts": [_text(weights, i, sizes, heads) for i, weights in enumerate(maps)],
    }


def _read(data: xarray.Dataset, name: str, dims: tuple[str, ...], source: str) -> np.ndarray:
    """The variable's values in the order of `dims`."""
    if name not in data.variables:
        raise UserError(f"{source} has no {name}[{', '.join(dims)}]")
    return _ordered(data[name], dims, f"{source}.{name}")


def _ordered(array: xarray.DataArray, dims: tuple[str, ...], what: str) -> np.ndarray:
    """Values in the order of `dims`; the page numbers layers and heads, so all must be there."""
    if set(array.dims) != set(dims):
        axes, expected = ", ".join(map(str, array.dims)), ", ".join(dims)
        raise UserError(f"{what} has the axes [{axes}], expected [{expected}]")
    for axis in ("layer", "head", "kv_head", "pair"):
        if axis in array.coords and not np.array_equal(array[axis], range(array.sizes[axis])):
            raise UserError(f"{what}: its {axis}s are not 0, 1, 2, ...; give all of them")
    return array.transpose(*dims).values


def _check_sizes(what: str, sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if sizes != expected:
        raise UserError(
            f"{what} has {sizes[0]} layers x {sizes[1]} heads and usage.q {expected[0]} x"
            f" {expected[1]}; give data of one model"
        )


def _present(x: np.ndarray) -> list[int]:
    """How many there are along axis 1 in each layer: what is beyond is NaN."""
    known = np.logical_not(np.isnan(x).all(axis=2))
    return [int(np.max(np.flatnonzero(row), initial=-1)) + 1 for row in known]


def _first(name: np.ndarray, score: np.ndarray) -> dict[str, int]:
    """The most clearly positional head, or the very first where none is."""
    positional = np.where(np.isin(name.astype(str), POSITIONAL), score, -1)
    best = np.argmax(positional) if positional.max() >= 0 else 0
    layer, head = np.unravel_index(best, name.shape)
    return {"layer": int(layer), "head": int(head)}


def _trim(x: np.ndarray, *counts: list[int]) -> list:
    """Nested lists of numbers; layer l keeps counts[i][l] along axis i + 1."""
    return [
        _numbers(values[tuple(slice(count) for count in layer_counts)])
        for values, *layer_counts in zip(x, *counts, strict=True)
    ]


def _numbers(x: np.ndarray) -> list:
    """Nested lists of x, with None for what JSON has no number for."""
    if x.ndim > 1:
        return [_numbers(row) for row in x]
    return [float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in x.tolist()]


def _text(weights: xarray.DataArray, i: int, sizes: tuple[int, int], heads: list[int]) -> dict:
    what = f"maps[{i}]"
    values = _ordered(weights, (*BY_HEAD, "query", "key"), what)
    _check_sizes(what, values.shape[:2], sizes)
    for axis in ("query_token", "key_token"):
        if axis not in weights.coords:
            raise UserError(f"{what} has no coordinate {axis}, the labels of its tokens")
    return {
        "label": str(weights.attrs.get("text") or f"text {i + 1}"),
        "queries": [str(token) for token in weights["query_token"].values],
        "keys": [str(token) for token in weights["key_token"].values],
        "weights": [
            [_bytes(head, what) for head in layer[:n]]
            for layer, n in zip(values, heads, strict=True)
        ],
    }


def _bytes(weights: np.ndarray, what: str) -> str:
    """Base64 of the weights in 8 bits, each within 1/510; JSON numbers would be megabytes."""
    levels = np.round(weights.astype(np.float64) * LEVELS)
    if not ((levels >= 0) & (levels <= LEVELS)).all():  # NaN is not, either
        raise UserError(f"{what} has weights outside [0, 1]; give attention after its softmax")
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode("ascii")
