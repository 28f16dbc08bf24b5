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

from rope_study.decoder import Decoder, DecoderConfig, Edit, Probe, check_bos, loss
from rope_study.errors import UserError
from rope_study.interventions.changes import Change, apply_changes, changes
from rope_study.interventions.edits import EDITABLE, Intervention
from rope_study.probes import datasets
from rope_study.probes.run import describe, in_f32
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
            f" {PLAIN!r}; got {list(interventions)}",
            "interventions",
        )
    edits = {name: changes(decoder.config, chain) for name, chain in interventions.items()}
    texts = _checked(decoder, batches)
    probed, layout = in_f32(decoder)
    repeated = repeated_sequences(texts, len(layout.fill(copies)), copy_length, seed)
    options = tuple(compiler.reading_options(params, layout).items())
    compiled = _compiled(probed.config, layout, options)

    def run(change: dict[str, Change], batch: Batch) -> tuple[Array, Array, list[dict]]:
        tokens, weights = batch
        return compiled(params, change, layout.place(tokens), layout.place(weights))

    results = {
        name: _Result(
            *_totals(run(change, batch) for batch in texts),
            None if repeated is None else _copying(run(change, repeated)[0]),
        )
        for name, change in edits.items()
    }
    return _dataset(results).assign_attrs(
        model=describe(probed.config),
        tokens=sum(int(weights.sum()) for _, weights in texts),
        texts=sum(len(tokens) for tokens, _ in texts),
        context=max(tokens.shape[1] for tokens, _ in texts),
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
        raise UserError(
            f"copy_length={length} must be at least 2: the first of a copy is a guess",
            "copy_length",
        )
    starts = np.unique(np.concatenate([tokens[:, 0] for tokens, _ in batches]))
    bos = starts if len(starts) == 1 else starts[:0]
    ids = np.unique(np.concatenate([tokens[weights > 0] for tokens, weights in batches]))
    ids = np.setdiff1d(ids, bos)
    drawn = np.random.default_rng(seed).choice(ids, (copies, length))
    tokens = np.concatenate([np.tile(bos, (copies, 1)), drawn, drawn], axis=1).astype(np.int32)
    return tokens, np.ones(tokens.shape, np.float32)


def _checked(decoder: Decoder, batches: Iterable[Batch]) -> list[Batch]:
    checked = list(batches)
    if not checked:
        raise UserError("measure: no batches were given", "batches")
    for tokens, weights in checked:
        check_bos(decoder.config, tokens)
        if not weights[:, 1:].any():
            raise UserError(
                "measure: a batch has no text of two tokens or more: nothing to predict", "batches"
            )
    return checked


# --- one forward pass, every row twice --------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _compiled(
    config: DecoderConfig, layout: Layout, options: tuple[tuple[str, Any], ...]
) -> Callable[[dict, dict[str, Change], Array, Array], tuple]:
    """(params, changes, tokens[B, T], weights[B, T]) -> losses, targets' weights, sums by layer.

    Losses f32[B, 2, T - 1], plain and edited, targets' weights f32[B, T - 1]. One program for all
    interventions, and kept: on small models compiling takes longer than running.
    """

    def read(module: Decoder, edit: Edit, tokens: Array, weights: Array) -> tuple[Array, Any]:
        def side_by_side(name: str, layer: Array, value: Array) -> Array:
            if name not in EDITABLE:
                return value
            # Neighbouring rows are one text's: where the batch is split, both are on one device.
            edited = jnp.arange(value.shape[0]) % 2 == 1
            return jnp.where(edited[:, None, None, None], edit(name, layer, value), value)

        x, aux = module.features(tokens, probes=[_PATTERN_SUMS], weights=weights, edit=side_by_side)
        targets = jnp.roll(tokens, -1, axis=1)
        losses = loss.token_losses(x, module.unembedding, targets, layout, cap=config.final_cap)
        return losses[:, :-1], aux[_PATTERN_SUMS.name]  # the last has no target

    def run(
        params: dict, change: dict[str, Change], tokens: Array, weights: Array
    ) -> tuple[Array, Array, Any]:
        twice = (jnp.repeat(a, 2, axis=0) for a in (tokens, weights))
        apply = functools.partial(Decoder(config, layout).apply, {"params": params}, method=read)
        losses, patterns = apply(apply_changes(change), *twice)
        return losses.reshape(len(tokens), 2, -1), weights[:, 1:], patterns

    return jax.jit(run, out_shardings=layout.sharding(), compiler_options=dict(options))


def _measure_patterns(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    """Of rows 2b, plain, and 2b + 1, edited: sums over queries, f32[2, N] of each of PATTERNS,
    f32[N] of total variation."""
    counted = weights.at[:, 0].set(0)

    def reduce(attention: Array, queries: Array) -> dict[str, Array]:
        w = counted[:, queries]

        def by_edit(x: Array) -> Array:
            """f32[2, N], plain and edited, of x[R, N, t]."""
            return jnp.einsum("rnt,rt->rn", x, w).reshape(-1, 2, x.shape[1]).sum(axis=0)

        plain, edited = attention[0::2], attention[1::2]
        change = jnp.sum(jnp.abs(plain - edited), axis=-1) / 2  # [B, N, t]
        return {
            "queries": jnp.sum(w[0::2]),
            "diagonal": by_edit(_weights_at(attention, queries)),
            "previous": by_edit(_weights_at(attention, jnp.maximum(queries - 1, 0))),
            "first": by_edit(attention[..., 0]),
            "entropy": by_edit(-jnp.sum(jax.scipy.special.xlogy(attention, attention), axis=-1)),
            "total_variation": jnp.einsum("bnt,bt->n", change, w[0::2]),
        }

    return activations["attention"](reduce)


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
      losses: [texts, 2], sums over a text's targets, plain and edited.
      targets: [texts], how many.
      patterns: one dict of sums a layer.
      copying: [copies, 2, 2], mean loss plain and edited, the first and the second time.
    """

    losses: np.ndarray
    targets: np.ndarray
    patterns: list[dict[str, np.ndarray]]
    copying: np.ndarray | None


def _totals(passes: Iterable[tuple]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    losses, targets, patterns = [], [], []
    for by_token, weights, sums in passes:
        by_token, weights = (np.asarray(a, np.float64) for a in (by_token, weights))
        losses.append(np.einsum("bet,bt->be", by_token, weights))
        targets.append(weights.sum(axis=1))
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), sums)
        patterns = jax.tree.map(np.add, patterns, sums) if patterns else sums
    return np.concatenate(losses), np.concatenate(targets), patterns


def _copying(losses: Array) -> np.ndarray:
    """[copies, 2, 2]: mean loss of the tokens 2..length of a sequence, both times."""
    by_token = np.asarray(losses, np.float64)
    length = (by_token.shape[2] + 1) // 2  # with BOS or without
    first, second = by_token[..., -2 * length + 1 : -length], by_token[..., -length + 1 :]
    return np.stack([first.mean(axis=-1), second.mean(axis=-1)], axis=-1)


def _dataset(results: dict[str, _Result]) -> xarray.Dataset:
    first, *_ = results.values()
    dims = ("intervention", *datasets.BY_HEAD)
    variables = _loss_variables(results)
    for name, (long_name, units) in PATTERNS.items():
        edited = [_by_layer(result, name)[:, 1] for result in results.values()]
        means = np.stack([_by_layer(first, name)[:, 0], *edited])
        variables[name] = (dims, means, datasets.attributes(long_name, units))
    moved = [_by_layer(result, "total_variation") for result in results.values()]
    variables["total_variation"] = (
        dims,
        np.stack([np.zeros_like(moved[0]), *moved]),
        datasets.attributes("total variation distance of attention from plain"),
    )
    names = np.array([PLAIN, *results], object)
    return datasets.number_axes(xarray.Dataset(variables, coords={"intervention": names}))


def _by_layer(result: _Result, name: str) -> np.ndarray:
    """Means over queries, [L, 2, N] or for total_variation [L, N]."""
    return np.stack([layer[name] / layer["queries"] for layer in result.patterns])


def _loss_variables(results: dict[str, _Result]) -> dict[str, tuple]:
    first, *_ = results.values()
    columns = {
        "loss": [first.losses[:, 0].sum() / first.targets.sum()],
        "loss_difference": [0.0],
        "loss_difference_se": [0.0],
    }
    for result in results.values():
        plain, edited = result.losses.T
        mean, error = mean_and_error(edited - plain, result.targets)
        columns["loss"].append(edited.sum() / result.targets.sum())
        columns["loss_difference"].append(mean)
        columns["loss_difference_se"].append(error)
    columns |= _copy_columns([r.copying for r in results.values() if r.copying is not None])
    return {
        name: (("intervention",), np.array(values), {"units": "nats/token"})
        for name, values in columns.items()
    }


def _copy_columns(copying: list[np.ndarray]) -> dict[str, list[float]]:
    """Of the arrays `_Result.copying` of all interventions; nothing where there are none."""
    if not copying:
        return {}
    means = [copying[0][:, 0], *(losses[:, 1] for losses in copying)]  # each [copies, 2]
    gains = [m[:, 0] - m[:, 1] for m in means]
    differences = [mean_and_error(gain - gains[0], np.ones(len(gain))) for gain in gains]
    return {
        "copy_first": [m[:, 0].mean() for m in means],
        "copy_second": [m[:, 1].mean() for m in means],
        "copy_gain": [gain.mean() for gain in gains],
        "copy_gain_difference": [mean for mean, _ in differences],
        "copy_gain_difference_se": [error for _, error in differences],
    }
