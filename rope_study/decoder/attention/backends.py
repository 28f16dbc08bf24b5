"""Which backend runs a layer's attention on the devices at hand, and why.

It is chosen where the decoder runs, not where it is configured: what was trained on a TPU is read
on a CPU with the same configuration.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from rope_study.decoder.attention import context, cudnn, splash
from rope_study.decoder.attention_scores import ScoreInputs, SoftCap
from rope_study.decoder.config import AUTO, REFERENCE, DecoderConfig, LayerSpec
from rope_study.errors import UserError
from rope_study.sharding import Layout, one_device

Array = jax.Array

# What is fast on each platform, of those in config.ATTENTION.
FAST = {"tpu": "splash", "gpu": "cudnn"}


class Choice(NamedTuple):
    """A backend, and why it is that one."""

    backend: str
    reason: str


def choose(config: DecoderConfig, spec: LayerSpec, layout: Layout | None) -> Choice:
    """What runs the layer: the backend that `config` names, or of "auto" the best that can.

    Without a layout "auto" is the reference: it alone takes arrays that are split over devices in a
    way that it is not told.

    Raises:
      UserError: the named backend cannot run the layer on these devices; says which can.
    """
    name = config.attention
    if name == AUTO:
        return _best(config, spec, layout)
    device = (layout or one_device()).mesh.devices.flat[0]
    reason = refusal(name, config, spec, device)
    if reason is not None:
        best = _best(config, spec, layout).backend
        raise UserError(
            f"attention={name!r} does not run this layer here: {reason}; {best!r} does",
            "attention",
        )
    return Choice(name, "as configured")


def refusal(name: str, config: DecoderConfig, spec: LayerSpec, device: Any = None) -> str | None:
    """Why a backend cannot run the layer, on any device where none is given; None where it can."""
    if name == REFERENCE:
        return None
    platform = next(platform for platform, fast in FAST.items() if fast == name)
    if device is not None and device.platform != platform:
        return f"it needs a {platform.upper()}, and the devices are of platform {device.platform!r}"
    if spec.score_function is not None and name not in spec.score_function.backends:
        return f"it has no {spec.score_function.name}"
    return cudnn.refusal(config, spec, device) if name == "cudnn" else None


def _best(config: DecoderConfig, spec: LayerSpec, layout: Layout | None) -> Choice:
    if layout is None:
        return Choice(REFERENCE, "the one without a layout of devices")
    device = layout.mesh.devices.flat[0]
    if device.platform not in FAST:
        return Choice(REFERENCE, f"the one for platform {device.platform!r}")
    name = FAST[device.platform]
    reason = refusal(name, config, spec, device)
    if reason is not None:
        return Choice(REFERENCE, f"not {name}: {reason}")
    return Choice(name, f"the fast one for platform {device.platform!r}")


def in_words(config: DecoderConfig, layout: Layout | None) -> str:
    """The backend of every layer and why, on one line."""
    choices = dict.fromkeys(choose(config, spec, layout) for spec in config.pattern)
    return ", ".join(f"{c.backend} attention ({c.reason})" for c in choices)


def attend_by(
    config: DecoderConfig,
    spec: LayerSpec,
    layout: Layout | None,
    q: Array,
    keys: Mapping[str, Array],
    inputs: ScoreInputs | None = None,
    rows: Array | None = None,
) -> Array:
    """A layer's attention by the backend of its choice: as reference.attend, [B, T, N, H].

    Args:
      config, spec, layout: as in `choose`.
      q: rotated [B, T, N, H].
      keys: "k" and "v" [B, S, K, H]; S may be above T where a cache has room for more.
      inputs: what the layer's score function reads besides the logits.
      rows: int[T], the places of the queries among the keys, where they do not begin at 0: tokens
        that follow a cache, which the reference reads.
    """
    backend = REFERENCE if rows is not None else choose(config, spec, layout).backend
    if backend == REFERENCE:
        return context.attend(spec, layout, q, keys, inputs, rows)
    # Causal: no query reads what comes later.
    k, v = (keys[name][:, : q.shape[1]] for name in ("k", "v"))
    if backend == "cudnn":
        return cudnn.attend(q, k, v, spec.window, layout)
    cap = spec.score_function.cap if isinstance(spec.score_function, SoftCap) else None
    documents = keys.get("documents")
    return splash.attend(q, k, v, spec.window, spec.chunk, cap, layout, documents=documents)
