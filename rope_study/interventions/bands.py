"""Bands: which rotary pairs of each head an intervention edits, and random bands to compare with.

P = head_dim / 2 pairs, numbered 0..P-1 as on the `pair` axis of probes, N query heads,
L layers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import xarray

from rope_study.checks import check, checked
from rope_study.decoder import attention
from rope_study.errors import UserError
from rope_study.probes import datasets


@dataclasses.dataclass(frozen=True)
class Band:
    """A choice of rotary pairs.

    Attributes:
      name: for tables, such as "fastest 0.25".
      choose: (frequencies float64[P] in radians per token, layer, head) -> int[m], the pairs.
        Frequencies are NaN where the encoding does not name them.
    """

    name: str
    choose: Callable[[np.ndarray, int, int], np.ndarray] = dataclasses.field(repr=False)

    def in_heads(self, name: str, heads: Iterable[tuple[int, int]]) -> "Band":
        """The band in the query heads (layer, head) only, such as those of one kind.

        An edit of keys needs whole groups of heads that share them; of queries any will do.
        """
        listed = list(heads) if np.iterable(heads) else heads
        check("heads", listed, Sequence[Sequence[int]])
        if not all(len(place) == 2 for place in listed):
            raise UserError(f"heads={listed} must be pairs (layer, head)", "heads")
        places = frozenset((int(layer), int(head)) for layer, head in listed)

        def choose(frequencies: np.ndarray, layer: int, head: int) -> np.ndarray:
            pairs = self.choose(frequencies, layer, head)
            return pairs if (layer, head) in places else pairs[:0]

        return Band(f"{self.name} of {name}", choose)


@checked
def band(
    *,
    fastest: float | None = None,
    slowest: float | None = None,
    indices: int | Sequence[int] | None = None,
    frequencies: tuple[float, float] | None = None,
    cycles: tuple[float, float] | None = None,
    context: int | None = None,
) -> Band:
    """A band by exactly one of:

    Args:
      fastest: the fraction of pairs with the highest frequencies, int(fastest P) of them, as
        p-RoPE counts; pairs of equal frequency in their order in the head.
      slowest: the same from the other end; unrotated pairs are the slowest.
      indices: these pairs, counted from 0.
      frequencies: (lowest, highest) in radians per token, both included.
      cycles: (fewest, most) cycles over `context` tokens, both included.
      context: tokens; with `cycles` only.
    """
    given = {
        name: value
        for name, value in (
            ("fastest", fastest), ("slowest", slowest), ("indices", indices),
            ("frequencies", frequencies), ("cycles", cycles),
        )
        if value is not None
    }  # fmt: skip
    if len(given) != 1 or (context is None) != (cycles is None):
        raise UserError(
            f"band: {', '.join(given) or 'nothing'} given; choose by one of fastest, slowest,"
            " indices, frequencies, or cycles with context"
        )
    if fastest is not None:
        return _by_rank("fastest", fastest, -1)
    if slowest is not None:
        return _by_rank("slowest", slowest, 1)
    if indices is not None:
        return _by_index(indices)
    if frequencies is not None:
        return _by_frequency(f"{_range(frequencies)} rad/token", frequencies, 1.0)
    assert cycles is not None and context is not None  # by the check of `given`
    if not context:
        raise UserError("band: context=0 must be at least 1 token", "context")
    name = f"{_range(cycles)} cycles over {context}"
    return _by_frequency(name, cycles, context / (2 * np.pi))


def _by_rank(which: str, fraction: float, sign: int) -> Band:
    if not 0 < fraction <= 1:
        raise UserError(
            f"band: {which}={fraction} must lie in (0, 1], the fraction of pairs", which
        )

    def choose(frequencies: np.ndarray, layer: int, head: int) -> np.ndarray:
        order = np.argsort(sign * np.abs(_known(frequencies, layer)), kind="stable")
        return np.sort(order[: int(fraction * len(frequencies))])

    return Band(f"{which} {fraction:g}", choose)


def _by_index(indices: int | Sequence[int]) -> Band:
    pairs = np.unique(np.atleast_1d(indices))
    if not pairs.size:
        raise UserError("band: indices=[] must be at least one", "indices")

    def choose(frequencies: np.ndarray, layer: int, head: int) -> np.ndarray:
        if pairs[-1] >= len(frequencies):
            raise UserError(
                f"band: index {pairs[-1]} is too large: layer {layer} has pairs"
                f" 0..{len(frequencies) - 1}",
                "indices",
            )
        return pairs

    return Band(f"pairs {', '.join(map(str, pairs))}", choose)


def _by_frequency(name: str, limits: tuple[float, float], unit: float) -> Band:
    low, high = limits

    def choose(frequencies: np.ndarray, layer: int, head: int) -> np.ndarray:
        rates = np.abs(_known(frequencies, layer)) * unit
        return np.flatnonzero((rates >= low) & (rates <= high))

    return Band(name, choose)


def _range(limits: tuple[float, float]) -> str:
    pair = np.asarray(limits)
    if pair.shape != (2,) or pair.dtype.kind not in "iuf" or not 0 <= pair[0] <= pair[1]:
        raise UserError(f"band: {limits!r} must be two numbers, the lower first, from 0 on")
    return f"{limits[0]:g} to {limits[1]:g}"


def _known(frequencies: np.ndarray, layer: int) -> np.ndarray:
    if np.isnan(frequencies).any():
        raise UserError(
            f"band: the encoding of layer {layer} has no fixed frequencies; choose pairs by indices"
        )
    return frequencies


# --- norms, and controls ----------------------------------------------------------------------

# A control whose norm is this near to the band's is not brought nearer: it stays random.
TOLERANCE = 0.01


@checked
def pair_products(usage: xarray.Dataset) -> np.ndarray:
    """float64[L, N, P]: mean |q^(k)| |k^(k)| of every head's pairs, from frequency_usage.

    Over all queries and keys of the texts, each with each, the mean of the product is the product
    of the means, which the probe has. It bounds the mean size of what the pair adds to a logit.
    """
    datasets.check_made_by("probes.frequency_usage", usage, drawn=False)
    q, k = usage["q"].to_numpy(), usage["k"].to_numpy()
    products = np.full_like(q, np.nan)
    for layer, group in enumerate(_group_sizes(usage)):
        key_heads = attention.key_heads(q.shape[1], q.shape[1] // group)
        products[layer] = q[layer] * k[layer, key_heads]
    return products


def _group_sizes(usage: xarray.Dataset) -> list[int]:
    """How many query heads share their keys, by layer; with fewer key heads k ends in NaN."""
    heads = usage.sizes["head"]
    return [heads // int((~np.isnan(k[:, 0])).sum()) for k in usage["k"].to_numpy()]


@checked
def band_share(usage: xarray.Dataset, band: Band) -> xarray.DataArray:
    """[layer, head]: the band's part of the sum of mean |q^(k)| |k^(k)| over all pairs."""
    products = pair_products(usage)
    frequencies = usage["inverse_frequency"].to_numpy()
    shares = np.zeros(products.shape[:2])
    for layer, head in np.ndindex(shares.shape):
        of_head = products[layer, head][~np.isnan(products[layer, head])]
        pairs = band.choose(frequencies[layer, : len(of_head)], layer, head)
        shares[layer, head] = of_head[pairs].sum() / of_head.sum()
    attributes = datasets.attributes(f"share of mean |q||k| in {band.name}")
    return xarray.DataArray(shares, dims=datasets.BY_HEAD, attrs=attributes)


@checked
def random_band(
    usage: xarray.Dataset, band: Band, seed: int = 0, *, by_key_head: bool = False
) -> Band:
    """A control for a band: in each head as many other pairs at random, of about the same norm.

    The norm is the sum of mean |q^(k)| |k^(k)|. As many of the other pairs are drawn; then one
    of them at a time is exchanged for one not drawn, the exchange that brings the sum nearest,
    until it is within TOLERANCE of the band's or no exchange helps. Where one pair outweighs all
    others nothing can match it: compare `band_share` of both before drawing conclusions.

    Args:
      usage: the dataset of probes.frequency_usage, of the decoder to edit.
      band: to compare with.
      seed: of the draw; every layer and head has its own.
      by_key_head: one draw for the query heads that share their keys, by their mean norms, as
        edits of keys need.
    """
    products, groups = pair_products(usage), _group_sizes(usage)

    def choose(frequencies: np.ndarray, layer: int, head: int) -> np.ndarray:
        pairs = band.choose(frequencies, layer, head)
        others = np.setdiff1d(np.arange(len(frequencies)), pairs)
        if len(others) < len(pairs):
            raise UserError(
                f"random_band: {band.name} takes {len(pairs)} of {len(frequencies)} pairs, which"
                " leaves too few others to compare with"
            )
        norms = products[layer, head]
        if by_key_head:
            head -= head % groups[layer]
            norms = products[layer, head : head + groups[layer]].mean(axis=0)
        drawn = np.random.default_rng((seed, layer, head)).permutation(others)
        return np.sort(_exchange(drawn, len(pairs), norms, norms[pairs].sum()))

    return Band(f"random, as {band.name} (seed {seed})", choose)


def _exchange(drawn: np.ndarray, size: int, norms: np.ndarray, wanted: float) -> np.ndarray:
    """int[size]: the first of `drawn`, after exchanges with the rest towards the wanted norm."""
    inside, outside = drawn[:size].copy(), drawn[size:].copy()
    while inside.size and outside.size:
        missing = wanted - norms[inside].sum()
        after = np.abs(missing + norms[inside][:, None] - norms[outside])
        i, j = np.unravel_index(after.argmin(), after.shape)
        if abs(missing) <= TOLERANCE * wanted or after[i, j] >= abs(missing):
            break
        inside[i], outside[j] = outside[j], inside[i]
    return inside
