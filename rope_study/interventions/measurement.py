"""What interventions do to a decoder: loss, every head's attention, and copying, side by side.

B batch, T tokens, N query heads, L layers. Losses come from one program, as the decoder is and
edited; attention from another, which reads every row twice side by side, so that weights can be
compared one by one, and needs no logits.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.checks import checked
from rope_study.decoder import (
    Decoder,
    DecoderConfig,
    Probe,
    check_length,
    each_batch,
    each_pair,
    variants,
)
from rope_study.errors import UserError
from rope_study.interventions.changes import Change, apply_changes, changes
from rope_study.interventions.edits import EDITABLE, Intervention
from rope_study.interventions.losses import Options, loss_reader
from rope_study.probes import datasets
from rope_study.probes.run import but_first, exact_einsum, fill_batch, in_f32
from rope_study.sharding import Layout, compiler
from rope_study.training.evaluate import mean_and_error

Array = jax.Array
Batch = tuple[np.ndarray, np.ndarray]

PLAIN = "plain"
PATTERNS = {
    "diagonal": ("mean attention on the query's own token", "1"),
    "previous": ("mean attention on the token before", "1"),
    "first": ("mean attention on the first token", "1"),
    "entropy": ("mean entropy of attention", "nats"),
}


@checked
def measure(
    decoder: Decoder,
    params: dict,
    batches: Iterable[Batch],
    interventions: Mapping[str, Intervention | Sequence[Intervention]],
    *,
    attention: bool = True,
    copies: int = 32,
    copy_length: int = 32,
    seed: int = 0,
) -> xarray.Dataset:
    """The decoder as it is and under each intervention, on the same texts; activations are f32.

    Args:
      decoder, params: as checkpoints.load gives them.
      batches: (tokens int32[B, T], weights f32[B, T], 0 on padding at the right), as a
        tokenizer's `encode_batch` gives them; filled up to divide over the devices.
      interventions: by name, each one or several that act together.
      attention: whether to measure attention; without, texts are read in a third of the time.
      copies: how many repeated sequences to read, see `repeated_sequences`; 0 reads none.
      copy_length: tokens before each repeats.
      seed: of these sequences.

    Returns:
      By `intervention`, of which the first is "plain": `loss` (nats/token), `loss_difference` from
      plain and its standard error over texts `loss_difference_se`, paired; with `attention` by
      layer and head `diagonal`, `previous`, `first`, `entropy` (all without the first query, which
      has one key to read) and `total_variation`, half of sum |difference| of attention from plain,
      mean over queries; and from the repeated sequences `copy_first` and `copy_second`, the loss of
      the same tokens the first and the second time, `copy_gain`, first minus second, and
      `copy_gain_difference` from plain with its standard error `copy_gain_difference_se`.

    Raises:
      UserError: nothing to measure or to measure on, an intervention named "plain" or that the
        decoder cannot have, or texts without BOS for a model that needs it.
    """
    if not interventions or PLAIN in interventions:
        raise UserError(
            f"measure: interventions are a dictionary by name, at least one and none named"
            f" {PLAIN!r}; got {list(interventions)}",
            "interventions",
        )
    config = datasets.with_trained_frequencies(decoder.config, params)
    edits = {PLAIN: changes(config, ())}
    edits |= {name: changes(config, chain) for name, chain in interventions.items()}
    texts = _checked(decoder, batches)
    context = max(tokens.shape[1] for tokens, _ in texts)
    check_length(decoder.config, context)
    probed, layout = in_f32(decoder, params)
    repeated = repeated_sequences(texts, copies, copy_length, seed)
    options = tuple(compiler.reading_options(params, layout).items())
    losses_of = loss_reader(decoder, params)
    patterns_of = _compiled_patterns(probed.config, layout, options)

    def patterns(change: dict[str, Change], batch: Batch) -> list[dict]:
        sums = patterns_of(params, change, *map(layout.place, fill_batch(layout, *batch)))
        return jax.tree.map(lambda a: np.asarray(a, np.float64), sums)

    results = {}
    for name, change in edits.items():
        results[name] = _Result(
            losses=np.concatenate([
                np.einsum("bt,bt->b", losses_of(change, tokens), weights[:, 1:])
                for tokens, weights in texts
            ]),
            copying=None if repeated is None else _copying(losses_of(change, repeated[0])),
            patterns=_summed(patterns(change, batch) for batch in texts)
            if attention and name != PLAIN
            else [],
        )  # fmt: skip
    targets = np.concatenate([weights[:, 1:].sum(axis=1, dtype=np.float64) for _, weights in texts])
    return _dataset(results, targets).assign_attrs(
        model=variants.describe(probed.config),
        tokens=sum(int(weights.sum()) for _, weights in texts),
        texts=sum(len(tokens) for tokens, _ in texts),
        context=context,
        copies=0 if repeated is None else len(repeated[0]),
        copy_length=copy_length,
        seed=seed,
    )


@checked
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
        raise UserError(
            f"copy_length={length} must be at least 2: the first of a copy is a guess",
            "copy_length",
        )
    texts = list(each_pair(batches))
    if not texts:
        raise UserError("repeated_sequences: no batches were given", "batches")
    starts = np.unique(np.concatenate([tokens[:, 0] for tokens, _ in texts]))
    bos = starts if len(starts) == 1 else starts[:0]
    ids = np.unique(np.concatenate([tokens[weights > 0] for tokens, weights in texts]))
    ids = np.setdiff1d(ids, bos)
    if not len(ids):
        raise UserError(
            f"copies={copies}: the texts have no token but their first, {bos}, to make repeated"
            " sequences of; give other texts, or copies=0",
            "copies",
        )
    drawn = np.random.default_rng(seed).choice(ids, (copies, length))
    tokens = np.concatenate([np.tile(bos, (copies, 1)), drawn, drawn], axis=1).astype(np.int32)
    return tokens, np.ones(tokens.shape, np.float32)


def _checked(decoder: Decoder, batches: Iterable[Batch]) -> list[Batch]:
    texts = list(each_batch(decoder.config, batches))
    if not texts:
        raise UserError("measure: no batches were given", "batches")
    for _, weights in texts:
        if not weights[:, 1:].any():
            raise UserError(
                "measure: a batch has no text of two tokens or more: nothing to predict", "batches"
            )
    return texts


# --- attention --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _compiled_patterns(config: DecoderConfig, layout: Layout, options: Options) -> Callable:
    """(params, changes, tokens[B, T], weights[B, T]) -> sums by layer, of `_PATTERN_SUMS`."""

    def run(params: dict, change: dict[str, Change], tokens: Array, weights: Array) -> Any:
        edit = apply_changes(change)

        def side_by_side(name: str, layer: Array, value: Array) -> Array:
            if name not in EDITABLE:
                return value
            # Neighbouring rows are one text's: where the batch is split, both are on one device.
            edited = jnp.arange(value.shape[0]) % 2 == 1
            return jnp.where(edited[:, None, None, None], edit(name, layer, value), value)

        twice, weights = (jnp.repeat(a, 2, axis=0) for a in (tokens, weights))
        _, aux = Decoder(config, layout).apply(
            {"params": params}, twice, probes=[_PATTERN_SUMS], weights=weights, edit=side_by_side,
            method="features",
        )  # fmt: skip
        return aux[_PATTERN_SUMS.name]

    return jax.jit(run, out_shardings=layout.sharding(), compiler_options=dict(options))


def _measure_patterns(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    """Of rows 2b, plain, and 2b + 1, edited: sums over queries, f32[2, N] of each of PATTERNS,
    f32[N] of total variation."""
    counted = but_first(weights)

    def reduce(attention: Array, queries: Array, counted: Array) -> dict[str, Array]:
        w = counted[:, queries]

        def by_edit(x: Array) -> Array:
            """f32[2, N], plain and edited, of x[R, N, t]."""
            return exact_einsum("rnt,rt->rn", x, w).reshape(-1, 2, x.shape[1]).sum(axis=0)

        plain, edited = attention[0::2], attention[1::2]
        change = jnp.sum(jnp.abs(plain - edited), axis=-1) / 2  # [B, N, t]
        return {
            "queries": jnp.sum(w[0::2]),
            "diagonal": by_edit(_weights_at(attention, queries)),
            "previous": by_edit(_weights_at(attention, jnp.maximum(queries - 1, 0))),
            "first": by_edit(attention[..., 0]),
            "entropy": by_edit(-jnp.sum(jax.scipy.special.xlogy(attention, attention), axis=-1)),
            "total_variation": exact_einsum("bnt,bt->n", change, w[0::2]),
        }

    return activations["attention"](reduce, counted)


_PATTERN_SUMS = Probe("patterns", ("attention",), _measure_patterns)


def _weights_at(attention: Array, keys: Array) -> Array:
    """[R, N, t] of attention [R, N, t, S] at one key int[t] for each query."""
    places = jnp.broadcast_to(keys[:, None], (*attention.shape[:-1], 1))
    return jnp.take_along_axis(attention, places, axis=-1)[..., 0]


# --- sums to a dataset ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Result:
    """What one intervention's passes gave, in float64.

    Attributes:
      losses: [texts], sums over a text's targets.
      copying: [copies, 2], mean loss of a sequence the first and the second time.
      patterns: one dict of sums a layer; empty where attention was not measured.
    """

    losses: np.ndarray
    copying: np.ndarray | None
    patterns: list[dict[str, np.ndarray]]


def _summed(batches: Iterable[list[dict]]) -> list[dict]:
    return functools.reduce(functools.partial(jax.tree.map, np.add), batches)


def _copying(losses: np.ndarray) -> np.ndarray:
    """[copies, 2]: mean loss of the tokens 2..length of a sequence, both times."""
    length = (losses.shape[1] + 1) // 2  # with BOS or without
    first, second = losses[:, -2 * length + 1 : -length], losses[:, -length + 1 :]
    return np.stack([first.mean(axis=-1), second.mean(axis=-1)], axis=-1)


def _dataset(results: dict[str, _Result], targets: np.ndarray) -> xarray.Dataset:
    """`results` by intervention, plain first; `targets` [texts], how many each text has."""
    variables = _loss_variables(results, targets) | _pattern_variables(results)
    names = np.array(list(results), object)
    return datasets.number_axes(xarray.Dataset(variables, coords={"intervention": names}))


def _pattern_variables(results: dict[str, _Result]) -> dict[str, tuple]:
    measured = [result.patterns for result in results.values() if result.patterns]
    if not measured:
        return {}

    def means(layers: list[dict], name: str) -> np.ndarray:
        """Over queries, [L, 2, N] or for total_variation [L, N]."""
        return np.stack([layer[name] / layer["queries"] for layer in layers])

    dims = ("intervention", *datasets.BY_HEAD)
    variables = {}
    for name, (long_name, units) in PATTERNS.items():
        plain = means(measured[0], name)[:, 0]
        values = np.stack([plain, *(means(layers, name)[:, 1] for layers in measured)])
        variables[name] = (dims, values, datasets.attributes(long_name, units))
    moved = [means(layers, "total_variation") for layers in measured]
    variables["total_variation"] = (
        dims,
        np.stack([np.zeros_like(moved[0]), *moved]),
        datasets.attributes("total variation distance of attention from plain"),
    )
    return variables


def _loss_variables(results: dict[str, _Result], targets: np.ndarray) -> dict[str, tuple]:
    plain = results[PLAIN]
    differences = [mean_and_error(r.losses - plain.losses, targets) for r in results.values()]
    columns = {
        "loss": [result.losses.sum() / targets.sum() for result in results.values()],
        "loss_difference": [mean for mean, _ in differences],
        "loss_difference_se": [error for _, error in differences],
    }
    columns |= _copy_columns([r.copying for r in results.values() if r.copying is not None])
    return {
        name: (("intervention",), np.array(values), {"units": "nats/token"})
        for name, values in columns.items()
    }


def _copy_columns(copying: list[np.ndarray]) -> dict[str, list[float]]:
    """Of the arrays `_Result.copying`, plain first; nothing where there are none."""
    if not copying:
        return {}
    gains = [losses[:, 0] - losses[:, 1] for losses in copying]
    differences = [mean_and_error(gain - gains[0], np.ones(len(gain))) for gain in gains]
    return {
        "copy_first": [losses[:, 0].mean() for losses in copying],
        "copy_second": [losses[:, 1].mean() for losses in copying],
        "copy_gain": [gain.mean() for gain in gains],
        "copy_gain_difference": [mean for mean, _ in differences],
        "copy_gain_difference_se": [error for _, error in differences],
    }
