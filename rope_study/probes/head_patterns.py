"""What each head attends to: itself, its neighbours, the first token, delimiters, or by meaning.

Section 5 of Barbero et al. (ICLR 2025): diagonal and previous-token heads (Figs. 5, 6, 14 to 16),
and heads that pick tokens by what they are (Fig. 7). Its reviewers asked for the other kinds.

A query counts from place minimum - 1 on: the first query has one key to read, which is itself, the
first token and everything else at once, and the next few are hardly less trivial. With `minimum`
keys even attention puts 1/minimum on each. Where a layer has a window or a chunk below `minimum`,
queries that read as many keys as it allows count.

How much is by distance and how much by token: take attention a_ij without the first token, and
what exceeds even attention, y_ij = a_ij - (mean of a_i over the keys that i reads). Then
  selective    mean over queries of sum_j |y_ij| / 2, the mass that is moved away from even;
  by_distance  share of sum y^2 that the mean of y at each distance i - j accounts for;
  by_token     the same for the mean of y at each id of the key.
A head that goes by distance alone has by_distance near 1. Even a head that does not gets about
2 / (tokens a text times texts), by chance. Distances from 256 on share a mean with those within a
factor of 2, ids with those equal modulo 4096.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.checks import checked
from rope_study.data import Tokenizer
from rope_study.decoder import DecoderConfig, Probe
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.run import but_first, exact_einsum

Array = jax.Array

EXACT, DOUBLINGS, ID_BUCKETS = 256, 16, 4096
# What each score of name_heads is, for readers of a page; offsets of "local" are below the window.
MEANINGS = {
    "diagonal": "mean attention on the query's own token",
    "previous": "mean attention on the token before",
    "sink": "mean attention on the first token",
    "local": "mean attention on the nearest {window} tokens, its own included",
    "delimiter": "mean attention on punctuation and line ends",
    "semantic": "mean attention moved away from even, and not by distance",
}
KINDS = tuple(MEANINGS)
POSITIONAL = ("diagonal", "previous")  # heads of these names, as in Sec. 5 of the paper


@checked
def head_patterns(
    *,
    tokenizer: Tokenizer | None = None,
    delimiters: Sequence[int] = (),
    window: int = 8,
    minimum: int = 16,
) -> Probe:
    """Mean attention mass by layer and head: on each near offset, the first token, delimiters.

    Args:
      tokenizer: its punctuation and line ends are delimiters.
      delimiters: ids that are, besides.
      window: offsets 0..window-1 are reported one by one; together they are `local`.
      minimum: how many keys a query must have to count, above `window` so that the first token is
        never local.
    """
    if not 1 < window < minimum:
        raise UserError(
            f"head_patterns: window={window} must be at least 2 and below minimum={minimum}, or"
            " the first token would be local as well",
            "window",
        )
    punctuation = [] if tokenizer is None else delimiter_ids(tokenizer)
    ids = np.array(sorted({*punctuation, *delimiters}), np.int32)

    def measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
        return _measure(activations, weights, ids, window, minimum)

    def finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
        return _finalize(totals, minimum).assign_attrs(
            window=window, minimum=minimum, delimiters=ids
        )

    return Probe("head_patterns", ("attention", "tokens", "key_counts"), measure, finalize)


@checked
def delimiter_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids whose text is nothing but punctuation or line ends, spaces aside."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    return [i for i, piece in enumerate(pieces) if _is_delimiter(piece)]


def _is_delimiter(piece: str) -> bool:
    """Whether a label of Tokenizer.pieces stands for punctuation: ▁ is a space, <0x0A> a byte.

    Bytes from 0x80 on are parts of characters, and stay as they are.
    """
    text = re.sub("<0x([0-7][0-9A-F])>", lambda byte: chr(int(byte[1], 16)), piece)
    text = text.replace("▁", "").strip(" \t")
    return bool(text) and all(c == "\n" or unicodedata.category(c).startswith("P") for c in text)


# --- sums -------------------------------------------------------------------------------------


def _measure(
    activations: Mapping[str, Any], weights: Array, ids: np.ndarray, window: int, minimum: int
) -> dict[str, Array]:
    tokens, key_counts = activations["tokens"], activations["key_counts"]
    B, T = tokens.shape
    places = jnp.arange(T)
    most = jnp.minimum(minimum, jnp.max(key_counts))  # as many as a window or a chunk allows
    counts = weights * ((places >= minimum - 1) & (key_counts >= most))
    others = but_first(weights)  # keys other than the first token
    delimiters = others * jnp.isin(tokens, ids)

    def reduce(
        attention: Array,
        queries: Array,
        weights: Array,
        counts: Array,
        others: Array,
        delimiters: Array,
        key_counts: Array,
    ) -> dict[str, Array]:
        a = attention * weights[:, None, None, :]  # [B, N, t, S], none on padding
        counted = counts[:, queries]
        distance = queries[:, None] - places
        readable = (distance >= 0) & (distance < key_counts[queries, None])  # [t, S]
        pairs = counted[:, :, None] * others[:, None, :] * readable  # [B, t, S]

        def over_queries(x: Array) -> Array:
            return exact_einsum("bnt,bt->n", x, counted)

        share = exact_einsum("bs,ts->bt", delimiters, readable) / key_counts[queries]
        y = _beyond_even(a, pairs)
        return {
            "queries": jnp.sum(counted),
            "offset": _by_offset(exact_einsum("bnts,bt->nts", a, counted), queries)[:, :window],
            "first": over_queries(a[..., 0]),
            "delimiter": over_queries(exact_einsum("bnts,bs->bnt", a, delimiters)),
            "delimiter_keys": jnp.sum(counted * share),
            "entropy": over_queries(-jnp.sum(jax.scipy.special.xlogy(a, a), axis=-1)),
            "selective": jnp.sum(jnp.abs(y), axis=(0, 2, 3)) / 2,
            "square": jnp.sum(jnp.square(y), axis=(0, 2, 3)),
            "y_offset": _by_offset(jnp.sum(y, axis=0), queries),
            "pairs_offset": _by_offset(jnp.sum(pairs, axis=0), queries),
            "y_key": jnp.sum(y, axis=2),
            "pairs_key": jnp.sum(pairs, axis=1),
        }

    sums = activations["attention"](reduce, weights, counts, others, delimiters, key_counts)
    for name in ("y", "pairs"):
        sums[f"{name}_offset"] = _into_bins(sums[f"{name}_offset"], distance_bins(T))
        of_key = jnp.moveaxis(sums.pop(f"{name}_key"), 0, -2).reshape(-1, B * T)
        by_id = jnp.zeros((len(of_key), ID_BUCKETS)).at[:, tokens.ravel() % ID_BUCKETS].add(of_key)
        sums[f"{name}_token"] = by_id if name == "y" else by_id[0]
    return sums


def _beyond_even(a: Array, pairs: Array) -> Array:
    """y [B, N, t, S]: a less its mean over a query's keys, for what pairs f32[B, t, S] counts."""
    pairs = pairs[:, None]
    keys = jnp.maximum(jnp.sum(pairs, axis=-1, keepdims=True), 1)
    return (a - jnp.sum(a * pairs, axis=-1, keepdims=True) / keys) * pairs


def _by_offset(x: Array, queries: Array) -> Array:
    """Sums of x[..., t, S] over queries at each offset: [..., S], how far a key lies back."""
    key = queries[:, None] - jnp.arange(x.shape[-1])
    places = jnp.broadcast_to(jnp.maximum(key, 0), x.shape)
    return jnp.sum(jnp.where(key >= 0, jnp.take_along_axis(x, places, axis=-1), 0), axis=-2)


def _into_bins(x: Array, bins: np.ndarray) -> Array:
    """Sums of x[..., S] over equal bins int[S]; the same shape whatever S, so that texts add up."""
    return jnp.zeros((*x.shape[:-1], EXACT + DOUBLINGS)).at[..., bins].add(x)


def distance_bins(length: int) -> np.ndarray:
    """int[length]: a bin for each distance below EXACT, then one for each doubling."""
    distances = np.arange(length)
    doublings = np.log2(np.maximum(distances, EXACT) / EXACT).astype(int)
    return np.where(distances < EXACT, distances, EXACT + np.minimum(doublings, DOUBLINGS - 1))


# --- the dataset ------------------------------------------------------------------------------


def _finalize(totals: list[dict], minimum: int) -> xarray.Dataset:
    if not all(layer["queries"] > 0 for layer in totals):
        raise UserError(
            f"head_patterns: no text has {minimum} tokens, so no query counts",
            "minimum",
            f"give longer texts, or fewer keys as minimum={minimum}",
        )

    def mean(name: str, long_name: str, units: str = "1", dims: tuple = datasets.BY_HEAD) -> tuple:
        layers = [layer[name] / layer["queries"] for layer in totals]
        return datasets.variable(dims, layers, long_name, units)

    def explained(name: str, long_name: str) -> tuple:
        layers = [
            _explained(layer[f"y_{name}"], layer[f"pairs_{name}"], layer["square"])
            for layer in totals
        ]
        return datasets.variable(datasets.BY_HEAD, layers, long_name)

    mass = "mean attention on"
    return datasets.number_axes(
        xarray.Dataset(
            {
                "offset_mass": mean(
                    "offset",
                    f"{mass} the key so many tokens back",
                    dims=(*datasets.BY_HEAD, "offset"),
                ),
                "first": mean("first", f"{mass} the first token"),
                "delimiter": mean("delimiter", f"{mass} delimiters other than the first token"),
                "delimiter_keys": mean(
                    "delimiter_keys", "share of delimiters among the keys", dims=("layer",)
                ),
                "entropy": mean("entropy", "mean entropy of attention", "nats"),
                "selective": mean("selective", "mean mass moved away from even attention"),
                "by_distance": explained("offset", "share of variance that distance explains"),
                "by_token": explained("token", "share of variance that the key's id explains"),
            }
        )
    )


def _explained(y: np.ndarray, pairs: np.ndarray, square: np.ndarray) -> np.ndarray:
    """[N]: sum of pairs * mean^2 over groups, of the sum of squares; 0 where there is nothing."""
    between = np.sum(np.square(y) / np.maximum(pairs, 1), axis=-1)
    return between / np.maximum(square, np.finfo(np.float64).tiny)


@checked
def name_heads(patterns: xarray.Dataset, threshold: float = 0.5) -> xarray.Dataset:
    """Names heads by what they attend to, from the dataset of `head_patterns`.

    Scores, each in [0, 1]:
      diagonal, previous   mean mass at offset 0, at offset 1
      sink                 mean mass on the first token
      local                mean mass at offsets 0..window-1
      delimiter            mean mass on delimiters
      semantic             selective * (1 - by_distance): mass that is moved away from even, and
                           not by distance
    The first three are disjoint, so at most one is above 1/2, and it names the head. Otherwise the
    largest of the others does, and where it is not above `threshold` the head is "mixed". Heads of
    the names in POSITIONAL are positional.

    Args:
      patterns: what head_patterns measured.
      threshold: how large a score must be; 0.5 is the head that mostly does one thing.

    Returns:
      `scores`[layer, head, kind], `name`[layer, head], and `score`[layer, head], that of its name
      (of a mixed head, the largest).
    """
    datasets.check_made_by("probes.head_patterns", patterns)
    if not 0 <= threshold <= 1:
        raise UserError(f"name_heads: threshold={threshold} must lie in [0, 1]", "threshold")
    offsets = patterns.offset_mass
    scores = xarray.concat(
        [
            offsets.sel(offset=0, drop=True),
            offsets.sel(offset=1, drop=True),
            patterns["first"],
            offsets.sum("offset"),
            patterns.delimiter,
            patterns.selective * (1 - patterns.by_distance),
        ],
        dim=xarray.DataArray(np.array(KINDS, object), dims="kind", name="kind"),
        coords="minimal",
    )
    scores = scores.transpose("layer", "head", "kind").clip(0, 1)
    narrow, broad = scores.isel(kind=slice(0, 3)), scores.isel(kind=slice(3, None))
    best = xarray.where(narrow.max("kind") > threshold, narrow.idxmax("kind"), broad.idxmax("kind"))
    score = scores.sel(kind=best).drop_vars("kind")
    named = score > threshold
    return xarray.Dataset(
        {
            "name": best.where(named, "mixed").assign_attrs(
                datasets.attributes("what the head does")
            ),
            "score": score.where(named, scores.max("kind")).assign_attrs(
                datasets.attributes("how sure its name is")
            ),
            "scores": scores.assign_attrs(datasets.attributes("how much of each kind the head is")),
        },
        attrs=patterns.attrs | {"threshold": threshold},
    )
