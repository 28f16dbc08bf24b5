"""Where a loss or a gradient that is NaN or Inf began: in which parameters, layer or gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.checkpoints.runs import names_not_finite
from rope_study.decoder import HOOK_POINTS, Decoder, DecoderConfig, Probe
from rope_study.training.gradients import Batch, loss_and_gradients

ACTIVATIONS = tuple(name for name in HOOK_POINTS if name != "attention")


def first_not_finite(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> str:
    """What is not finite first in a step on this batch, in words; arguments as loss_and_gradients.

    First parameters, then activations from layer to layer, then gradients.
    """
    if names := names_not_finite(params):
        return f"the update before made parameters that are not finite, such as {names[0]}"
    for layer, are_finite in enumerate(_finite_activations(decoder, params, batch)):
        for name in ACTIVATIONS:
            if not are_finite.get(name, True):
                return f"layer {layer} is the first that is not finite, at {name}"
    wrong = _wrong_gradients(decoder, params, batch, accumulate, shardings)
    if not wrong:
        return "run again all is finite, so the devices do not give the same numbers twice"
    # Gradients come from the last layer to the first, and so do NaNs among them.
    layers = _layers(wrong, decoder.config)
    where = f"of layer {max(layers)}" if layers else f"of {next(iter(wrong))}"
    return f"every layer is finite; the gradient {where} is the first that is not"


def _finite_activations(decoder: Decoder, params: dict, batch: Batch) -> list[dict[str, bool]]:
    """Of every layer: which activations are finite, in the dtype and on the devices of training."""

    def are_finite(activations: Mapping[str, Any], _: jax.Array) -> dict[str, jax.Array]:
        there = [name for name in ACTIVATIONS if name in activations]
        return {name: jnp.all(jnp.isfinite(activations[name])) for name in there}

    probe = Probe("finite", ACTIVATIONS, are_finite)

    def run(params: dict, tokens: jax.Array) -> Any:
        _, measured = decoder.apply(
            {"params": params}, tokens, probes=(probe,), method="features"
        )
        return measured["finite"]

    assert decoder.layout is not None
    windows = batch[0] if isinstance(batch, tuple) else batch
    return jax.device_get(
        jax.jit(run, out_shardings=decoder.layout.sharding())(params, windows[:, :-1])
    )


def _wrong_gradients(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> dict[str, np.ndarray]:
    """The arrays whose gradients are not finite, and which places of their first axis are."""

    def run(params: dict, batch: Batch) -> dict:
        _, gradients = loss_and_gradients(decoder, params, batch, accumulate, shardings)
        return jax.tree.map(
            lambda array: jnp.all(jnp.isfinite(array), tuple(range(1, array.ndim))), gradients
        )

    assert decoder.layout is not None
    run_on_devices = jax.jit(run, out_shardings=decoder.layout.sharding())
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(run_on_devices(params, batch)))
    are_finite = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    return {name: finite for name, finite in are_finite.items() if not finite.all()}


def _layers(wrong: Mapping[str, np.ndarray], config: DecoderConfig) -> list[int]:
    """The layers whose gradients are not finite, of what `_wrong_gradients` gives."""
    found = []
    for group, _, layers in config.layer_groups:
        for name, finite in wrong.items():
            if name.startswith(f"{group}/"):
                # Repeats of one place of the pattern are stacked; what is left over is one layer.
                by_layer = finite if group.startswith("pattern") else [finite.all()]
                found += [layer for layer, ok in zip(layers, by_layer, strict=True) if not ok]
    return found
