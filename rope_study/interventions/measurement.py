"""What interventions do to a decoder: loss, every head's attention, and copying, side by side.

B batch, T tokens, N query heads, L layers, I interventions. Every row is read twice in one forward
pass, as the decoder is and edited, so that attention weights can be compared one by one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.decoder import Decoder, Edit, Probe, check_bos, loss
from rope_study.errors import UserError
from rope_study.interventions.edits import EDITABLE, Intervention, apply_changes, changes
from rope_study.probes.run import describe, in_f32
from rope_study.sharding import compiler

Array = jax.Array
Batch = tuple[np.ndarray, np.ndarray]

PLAIN = "plain"
PATTERNS = {
    "diagonal": ("mean attention on the query's own token", "1"),
    "previous": ("mean attention on the token before", "1"),
    "first": ("mean attention on the first token", "1"),
    "entropy": ("mean entropy of attention", "nats"),
}


def measure(
    decoder: Decoder,
    params: dict,
    batches: Iterable[Batch],
    interventions: Mapping[str, Intervention | Sequence[Intervention]],
    *,
    copies: int = 32,
    copy_length: int = 32,
    seed: int = 0,
) -> xarray.Dataset:
    """The decoder as it is and under each intervention, on the same texts; activations are f32.

    Args:
      decoder, params: as checkpoints.load gives them.
      batches: (tokens int32[B, T], weights f32[B, T], 0 on padding at the right), as a
        tokenizer's `encode_batch` gives them; B must divide over the devices of the batch axis.
      interventions: by name, each one or several that act together.
      copies: how many repeated sequences to read, see `repeated_sequences`; 0 reads none.
      copy_length: tokens before each repeats.
      seed: of these sequences.

    Returns:
      By `intervention`, of which the first is "plain": `loss` (nats/token), `loss_difference` from
      plain and its standard error over texts `loss_difference_se`, paired; by layer and head
      `diagonal`, `previous`, `first`, `entropy` (all without the first query, which has one key to
      read) and `total_variation`, half of sum |difference| of attention from plain, mean over
      queries; and from the repeated sequences `copy_first` and `copy_second`, the loss of the same
      tokens the first and the second time, `copy_gain`, first minus second, and
      `copy_gain_difference` from plain with its standard error `copy_gain_difference_se`.

    Raises:
      UserError: nothing to measure or to measure on, an intervention named "plain" or that the
        decoder cannot have, or texts without BOS for a model that needs it.
    """
    if not interventions or PLAIN in interventions:
        raise UserError(
            f"measure: interventions are a dictionary by name, at least one and none named"
            f" {PLAIN!r}; got {list(interventions)}"
        )
    decoder = in_f32(decoder)
    edits = {name: changes(decoder.config, chain) for name, chain in interventions.items()}
    batches = _checked(decoder, batches)
    repeated = repeated_sequences(batches, _rounded(copies, decoder), copy_length, seed)
    run = _compiled(decoder, tuple(compiler.reading_options(params, decoder.layout).items()))
    found = {}
    for name, one in edits.items():
        found[name] = _Found(
            *_totals(run(params, one, *_placed(decoder, batch)) for batch in batches),
            None if repeated is None else _copying(run(params, one, *_placed(decoder, repeated))),
        )
    count = sum(int(weights.sum()) for _, weights in batches)
    return _dataset(found).assign_attrs(
        model=describe(decoder.config),
        tokens=count,
        texts=sum(len(tokens) for tokens, _ in batches),
        context=max(tokens.shape[1] for tokens, _ in batches),
        copies=0 if repeated is None else len(repeated[0]),
        copy_length=copy_length,
        seed=seed,
    )


def repeated_sequences(
    batches: Sequence[Batch], copies: int, length: int, seed: int = 0
) -> Batch | None:
    """Tokens that mean nothing and are said twice: what can be known of the second is a copy.

    Ids are drawn evenly, without regard to order, from those that occur in the batches, so none
    is one that the decoder was never trained on. Where all texts begin with one id, which is BOS,
    so do these and it is not drawn.

    Returns:
      (tokens int32[copies, (1 +) 2 length], weights of 1), or None for no copies.
    """
    if copies < 1:
        return None
    if length < 2:
        raise UserError(f"copy_length={length} must be at least 2: the first of a copy is a guess")
    starts = np.unique(np.concatenate([tokens[:, 0] for tokens, _ in batches]))
    bos = starts if len(starts) == 1 else starts[:0]
    ids = np.unique(np.concatenate([tokens[weights > 0] for tokens, weights in batches]))
    ids = np.setdiff1d(ids, bos)
    drawn = np.random.default_rng(seed).choice(ids, (copies, length))
    tokens = np.concatenate([np.tile(bos, (copies, 1)), drawn, drawn], axis=1).astype(np.int32)
    return tokens, np.ones(tokens.shape, np.float32)


def _checked(decoder: Decoder, batches: Iterable[Batch]) -> list[Batch]:
    batches = list(batches)
    if not batches:
        raise UserError("measure: no batches were given")
    for tokens, weights in batches:
        check_bos(decoder.config, tokens)
        if not weights[:, 1:].any():
            raise UserError(
                "measure: a batch has no text of two tokens or more: nothing to predict"
            )
    return batches


def _rounded(rows: int, decoder: Decoder) -> int:
    """Up to what divides over the devices."""
    shards = decoder.layout.shards("batch")
    return -(-rows // shards) * shards


def _placed(decoder: Decoder, batch: Batch) -> tuple[Array, Array]:
    return tuple(decoder.layout.place(array) for array in batch)


# --- one forward pass, every row twice --------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _compiled(decoder: Decoder, options: tuple) -> Callable[[dict, dict, Array, Array], tuple]:
    """(params, changes, tokens[B, T], weights[B, T]) -> losses, targets' weights, sums by layer.

    Losses f32[B, 2, T - 1], plain and edited, targets' weights f32[B, T - 1]. One program for all
    interventions, and kept: on small models compiling takes longer than running.
    """

    def read(module: Decoder, one: Edit, tokens: Array, weights: Array) -> tuple[Array, Any]:
        def side_by_side(name: str, layer: Array, value: Array) -> Array:
            if name not in EDITABLE:
                return value
            # Neighbouring rows are one text's: where the batch is split, both are on one device.
            edited = jnp.arange(value.shape[0]) % 2 == 1
            return jnp.where(edited[:, None, None, None], one(name, layer, value), value)

        x, aux = module.features(tokens, probes=[_PATTERNS], weights=weights, edit=side_by_side)
        targets, cap = jnp.roll(tokens, -1, axis=1), module.config.final_cap
        losses = loss.token_losses(x, module.output_table, targets, module.layout, cap=cap)
        return losses[:, :-1], aux[_PATTERNS.name]  # the last has no target

    def run(params: dict, found: dict, tokens: Array, weights: Array) -> tuple[Array, Array, Any]:
        twice = (jnp.repeat(a, 2, axis=0) for a in (tokens, weights))
        edit = apply_changes(found)
        losses, patterns = decoder.apply({"params": params}, edit, *twice, method=read)
        return losses.reshape(len(tokens), 2, -1), weights[:, 1:], patterns

    return jax.jit(run, out_shardings=decoder.layout.sharding(), compiler_options=dict(options))


def _measure_patterns(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    """Of rows 2b, plain, and 2b + 1, edited: sums over queries, f32[2, N] of each of PATTERNS,
    f32[N] of total variation."""
    counted = weights.at[:, 0].set(0)

    def reduce(attention: Array, queries: Array) -> dict[str, Array]:
        w = counted[:, queries]
        total = lambda x: jnp.einsum("rnt,rt->rn", x, w)  # noqa: E731
        both = lambda x: total(x).reshape(-1, 2, x.shape[1]).sum(axis=0)  # noqa: E731
        plain, edited = attention[0::2], attention[1::2]
        change = jnp.sum(jnp.abs(plain - edited), axis=-1) / 2  # [B, N, t]
        return {
            "queries": jnp.sum(w[0::2]),
            "diagonal": both(_at(attention, queries)),
            "previous": both(_at(attention, jnp.maximum(queries - 1, 0))),
            "first": both(attention[..., 0]),
            "entropy": both(-jnp.sum(jax.scipy.special.xlogy(attention, attention), axis=-1)),
            "total_variation": jnp.einsum("bnt,bt->n", change, w[0::2]),
        }

    return activations["attention"](reduce)


_PATTERNS = Probe("patterns", ("attention",), _measure_patterns)


def _at(attention: Array, keys: Array) -> Array:
    """[R, N, t] of attention [R, N, t, S] at one key int[t] for each query."""
    index = jnp.broadcast_to(keys[:, None], (*attention.shape[:-1], 1))
    return jnp.take_along_axis(attention, index, axis=-1)[..., 0]


# --- sums to a dataset ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Found:
    """What one intervention's passes gave, in float64.

    Attributes:
      losses: [texts, 2], sums over a text's targets, plain and edited.
      targets: [texts], how many.
      patterns: one dict of sums a layer.
      copying: [copies, 2, 2], mean loss plain and edited, the first and the second time.
    """

    losses: np.ndarray
    targets: np.ndarray
    patterns: list[dict[str, np.ndarray]]
    copying: np.ndarray | None


def _totals(parts: Iterable[tuple]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    losses, targets, patterns = [], [], None
    for by_token, weights, part in parts:
        by_token, weights = (np.asarray(a, np.float64) for a in (by_token, weights))
        losses.append(np.einsum("bet,bt->be", by_token, weights))
        targets.append(weights.sum(axis=1))
        part = jax.tree.map(lambda a: np.asarray(a, np.float64), part)
        patterns = part if patterns is None else jax.tree.map(np.add, patterns, part)
    return np.concatenate(losses), np.concatenate(targets), patterns


def _copying(part: tuple) -> np.ndarray:
    """[copies, 2, 2]: mean loss of the tokens 2..length of a sequence, both times."""
    by_token = np.asarray(part[0], np.float64)
    length = (by_token.shape[2] + 1) // 2  # with BOS or without
    first, second = by_token[..., -2 * length + 1 : -length], by_token[..., -length + 1 :]
    return np.stack([first.mean(axis=-1), second.mean(axis=-1)], axis=-1)


def _dataset(found: dict[str, _Found]) -> xarray.Dataset:
    one = next(iter(found.values()))
    by_head = ("intervention", "layer", "head")
    variables = _loss_variables(found)
    for name, (long_name, units) in PATTERNS.items():
        rows = [_by_layer(one, name)[:, 0], *(_by_layer(f, name)[:, 1] for f in found.values())]
        variables[name] = (by_head, np.stack(rows), {"units": units, "long_name": long_name})
    changes = [_by_layer(f, "total_variation") for f in found.values()]
    about = {"units": "1", "long_name": "total variation distance of attention from plain"}
    changes = np.stack([np.zeros_like(changes[0]), *changes])
    variables["total_variation"] = (by_head, changes, about)
    return xarray.Dataset(
        variables,
        coords={
            "intervention": np.array([PLAIN, *found], object),
            "layer": np.arange(changes.shape[1]),
            "head": np.arange(changes.shape[2]),
        },
    )


def _by_layer(found: _Found, name: str) -> np.ndarray:
    """Means over queries, [L, 2, N] or for total_variation [L, N]."""
    return np.stack([layer[name] / layer["queries"] for layer in found.patterns])


def _loss_variables(found: dict[str, _Found]) -> dict[str, tuple]:
    one = next(iter(found.values()))
    columns: dict[str, list[float]] = {"loss": [one.losses[:, 0].sum() / one.targets.sum()]}
    columns |= {"loss_difference": [0.0], "loss_difference_se": [0.0]}
    for f in found.values():
        columns["loss"].append(f.losses[:, 1].sum() / f.targets.sum())
        difference = ratio(f.losses[:, 1] - f.losses[:, 0], f.targets)
        for key, value in zip(("loss_difference", "loss_difference_se"), difference, strict=True):
            columns[key].append(value)
    if one.copying is not None:
        columns |= _copy_columns(list(found.values()))
    about = {"units": "nats/token"}
    return {name: (("intervention",), np.array(values), about) for name, values in columns.items()}


def _copy_columns(found: list[_Found]) -> dict[str, list[float]]:
    means = [found[0].copying[:, 0], *(f.copying[:, 1] for f in found)]  # each [copies, 2]
    gains = [m[:, 0] - m[:, 1] for m in means]
    differences = [ratio(gain - gains[0], np.ones(len(gain))) for gain in gains]
    return {
        "copy_first": [m[:, 0].mean() for m in means],
        "copy_second": [m[:, 1].mean() for m in means],
        "copy_gain": [gain.mean() for gain in gains],
        "copy_gain_difference": [mean for mean, _ in differences],
        "copy_gain_difference_se": [error for _, error in differences],
    }


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean over all tokens, and its standard error over texts of any lengths.

    sum(sums) / sum(counts), and the first order error of that ratio; for texts of one length the
    standard error of the mean over texts. NaN for a single text.

    Args:
      sums: [texts], over a text's tokens.
      counts: [texts], its tokens.
    """
    mean = sums.sum() / counts.sum()
    texts = np.count_nonzero(counts)
    if texts < 2:
        return float(mean), float("nan")
    square = np.square(sums - mean * counts).sum() * texts / (texts - 1)
    return float(mean), float(np.sqrt(square) / counts.sum())
