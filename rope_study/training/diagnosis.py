"""Where a loss or a gradient that is NaN or Inf began: in which parameters, layer or gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rope_study.checkpoints.runs import names_not_finite
from rope_study.decoder import HOOK_POINTS, Decoder, DecoderConfig, Probe
from rope_study.training.gradients import Batch, loss_and_gradients

ACTIVATIONS = tuple(name for name in HOOK_POINTS if name != "attention")


def first_not_finite(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> str:
    """What is not finite first in a step on this batch, in words; arguments as loss_and_gradients.

    First parameters, then activations from layer to layer, the loss, gradients from the last layer
    to the first, and their norm.
    """
    if names := names_not_finite(params):
        return f"the update before made parameters that are not finite, such as {names[0]}"
    for layer, are_finite in enumerate(_finite_activations(decoder, params, batch)):
        for name in ACTIVATIONS:
            if not are_finite.get(name, True):
                return f"layer {layer} is the first that is not finite, at {name}"
    loss_is_finite, norm_is_finite, gradients = _finite_gradients(
        decoder, params, batch, accumulate, shardings
    )
    if not loss_is_finite:
        return "every layer is finite, and the loss of what the last one gives is not"
    wrong = {name: finite for name, finite in gradients.items() if not finite.all()}
    if wrong:
        layers = _layers(wrong, decoder.config)
        where = f"layer {max(layers)}" if layers else next(iter(wrong))
        return f"the loss is finite, and the gradient of {where} is the first that is not"
    if not norm_is_finite:
        return "every gradient is finite, and too large for their norm to be"
    return "run again all is finite, so the devices do not give the same numbers twice"


def _finite_activations(decoder: Decoder, params: dict, batch: Batch) -> list[dict[str, bool]]:
    """Of every layer: which activations are finite, in the dtype and on the devices of training."""

    def are_finite(activations: Mapping[str, Any], _: jax.Array) -> dict[str, jax.Array]:
        there = [name for name in ACTIVATIONS if name in activations]
        return {name: jnp.all(jnp.isfinite(activations[name])) for name in there}

    probe = Probe("finite", ACTIVATIONS, are_finite)

    def run(params: dict, tokens: jax.Array) -> Any:
        _, measured = decoder.apply({"params": params}, tokens, probes=(probe,), method="features")
        return measured["finite"]

    assert decoder.layout is not None
    windows = batch[0] if isinstance(batch, tuple) else batch
    return jax.device_get(
        jax.jit(run, out_shardings=decoder.layout.sharding())(params, windows[:, :-1])
    )


def _finite_gradients(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> tuple[bool, bool, dict[str, np.ndarray]]:
    """Whether the loss is finite, the norm of its gradients, and places of their first axes."""

    def run(params: dict, batch: Batch) -> Any:
        loss, gradients = loss_and_gradients(decoder, params, batch, accumulate, shardings)
        by_place = jax.tree.map(
            lambda array: jnp.all(jnp.isfinite(array), tuple(range(1, array.ndim))), gradients
        )
        return jnp.isfinite(loss), jnp.isfinite(optax.global_norm(gradients)), by_place

    assert decoder.layout is not None
    run_on_devices = jax.jit(run, out_shardings=decoder.layout.sharding())
    loss, norm, by_place = jax.device_get(run_on_devices(params, batch))
    leaves = jax.tree_util.tree_leaves_with_path(by_place)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return bool(loss), bool(norm), named


def _layers(wrong: Mapping[str, np.ndarray], config: DecoderConfig) -> list[int]:
    """The layers whose gradients are not finite, of what `_finite_gradients` gives."""
    not_finite = []
    for group, _, layers in config.layer_groups:
        for name, finite in wrong.items():
            if name.startswith(f"{group}/"):
                # Repeats of one place of the pattern are stacked; what is left over is one layer.
                by_layer = finite if group.startswith("pattern") else [finite.all()]
                not_finite += [layer for layer, ok in zip(layers, by_layer, strict=True) if not ok]
    return not_finite
