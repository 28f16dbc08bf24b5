"""Where a decoder first differs from a peer: the tool for porting a model.

The peer's activations go into one dictionary (docs/checkpoints.md shows how to catch them in
Transformers); names are those of decoder.HOOK_POINTS behind their layer:

    golden = {"tokens": ..., "embedding": ..., "layer_0/q_rotated": ..., "layer_0/residual": ...,
              "logits": ...}
    print(checkpoints.compare(decoder, params, golden))
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rope_study import rotary
from rope_study.checks import checked
from rope_study.decoder import Decoder, Probe, check_params, check_tokens
from rope_study.errors import UserError, nearest
from rope_study.files import explained
from rope_study.files.paths import local_copy, to_path
from rope_study.sharding import to_host

# In the order in which a layer makes them.
COMPARED = ("q", "q_rotated", "v", "k", "k_rotated", "attention_output", "residual")
WITH_PAIRS = ("q", "k", "q_rotated", "k_rotated")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor: the largest absolute difference, the largest golden value, and a hint."""

    name: str
    difference: float
    scale: float
    agrees: bool
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All tensors in the order in which the decoder makes them."""

    rows: tuple[Row, ...]
    tolerance: float

    @property
    def first_difference(self) -> str | None:
        """The first tensor that differs, such as "layer_3/k_rotated"; None where all agree."""
        return next((row.name for row in self.rows if not row.agrees), None)

    def __str__(self):
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'tensor':<{width}}  max difference  max golden"]
        for row in self.rows:
            mark = "" if row.agrees else "  DIFFERS" + (f": {row.hint}" if row.hint else "")
            lines.append(f"{row.name:<{width}}  {row.difference:14.3g}  {row.scale:10.3g}{mark}")
        first = self.first_difference
        verdict = f"first difference: {first}" if first else "everything agrees"
        return "\n".join([*lines, f"{verdict} (tolerance {self.tolerance:g})"])


@checked
def compare(
    decoder: Decoder,
    params: dict,
    golden: Mapping[str, np.ndarray] | str | os.PathLike,
    tolerance: float = 2e-4,
) -> Comparison:
    """Runs the decoder in f32 on golden["tokens"] and compares whatever else golden holds.

    Args:
      decoder, params: as checkpoints.load gives them.
      golden: arrays by name, or an .npz file of them. "tokens" int[B, T]; any of "embedding"
        [B, T, D] (what goes into the first layer), "layer_i/<activation>", "logits" [B, T, V].
        q is compared as this project scales it: logits are q.k / sqrt(H).
      tolerance: absolute.

    Raises:
      UserError: no tokens, ids or a name that the decoder does not have, or another shape.
    """
    if isinstance(golden, str | os.PathLike):
        golden = _read(to_path(golden, "golden"))
    if "tokens" not in golden:
        raise UserError("golden has no 'tokens': give the int[B, T] that the peer read")
    check_params(decoder.config, params)
    check_tokens(decoder.config, golden["tokens"], needs_bos=False)
    expected = {name: np.asarray(value) for name, value in golden.items() if name != "tokens"}
    reference = Decoder(decoder.config.reference_f32())
    ours = activations(reference, params, jnp.asarray(golden["tokens"]))
    for name, value in expected.items():
        if name not in ours:
            raise UserError(f"the decoder has no {name!r} to compare.{nearest(name, ours)}")
        if value.shape != ours[name].shape:
            raise UserError(f"{name} is {ours[name].shape} here and {value.shape} in golden")
    rows = [_row(name, ours[name], expected[name], tolerance) for name in ours if name in expected]
    if not rows:
        raise UserError("golden holds nothing but tokens: add activations or logits")
    return Comparison(tuple(rows), tolerance)


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with explained("golden"), np.load(local_copy(file)) as arrays:
            return dict(arrays)
    except UserError:
        raise
    except Exception as error:  # of zipfile and NumPy, which have no class in common
        raise UserError(f"{file} is no .npz file of arrays ({error})", "golden") from error


def activations(decoder: Decoder, params: dict, tokens: jax.Array) -> dict[str, np.ndarray]:
    """Everything that can be compared, in order, under its name, for tokens int[B, T]."""
    embedding, layers, logits = _run(decoder, params, tokens)
    by_name = {"embedding": embedding}
    for i, layer in enumerate(layers):
        by_name |= {f"layer_{i}/{name}": layer[name] for name in COMPARED if name in layer}
    by_name["logits"] = logits
    return {name: to_host(value) for name, value in by_name.items()}


@functools.partial(jax.jit, static_argnums=0)
def _run(decoder: Decoder, params: dict, tokens: jax.Array) -> Any:
    """The embedding, COMPARED by layer, and logits."""
    apply = functools.partial(decoder.apply, {"params": params}, tokens)
    logits, aux = apply(probes=[_EVERYTHING])
    return apply(method="embed"), aux[_EVERYTHING.name], logits


def _everything(activations: Mapping, weights: jax.Array) -> dict:
    return {name: value for name, value in activations.items() if name in COMPARED}


_EVERYTHING = Probe("all", COMPARED, _everything)


def _row(name: str, ours: np.ndarray, golden: np.ndarray, tolerance: float) -> Row:
    golden = golden.astype(np.float64)
    difference = _largest(ours - golden)
    agrees = bool(difference <= tolerance)  # False for NaN
    hint = "" if agrees else _hint(name, ours, golden, tolerance)
    return Row(name, difference, _largest(golden), agrees, hint)


def _hint(name: str, ours: np.ndarray, golden: np.ndarray, tolerance: float) -> str:
    """What usually is the matter."""
    activation = re.sub(r"^layer_\d+/", "", name)
    if not np.isfinite(golden).all() or not np.isfinite(ours).all():
        return "not finite"
    if activation in WITH_PAIRS:
        split = rotary.convert_layout(golden, "interleaved", "half_split")
        if _largest(ours - split) <= tolerance:
            return "equal once golden's pairs are taken as interleaved (rotary.convert_layout)"
    norm = float(np.sum(golden**2))
    factor = float(np.sum(ours * golden)) / norm if norm else 0.0
    if factor and _largest(ours / factor - golden) <= tolerance * max(1, 1 / abs(factor)):
        return f"ours is {factor:.6g} times golden: a scale"
    return ""


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))
