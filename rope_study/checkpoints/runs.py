"""Checkpoints of this project's own runs, written with Orbax.

A run's folder holds model.json (shapes, encodings by name, tokenizer) and checkpoints/<step>/ with
two items: `params`, unboxed, and `optimizer`. Restoring always goes into an abstract tree with
shardings, so what 8 devices saved, one restores, and the other way round.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp

from rope_study import data, rotary, sharding
from rope_study.decoder import Decoder, DecoderConfig, LayerSpec, fit_layout, variants
from rope_study.errors import UserError
from rope_study.rotary import Rotary

PARAMS, OPTIMIZER = "params", "optimizer"
MODEL_FILE = "model.json"


def load(
    path: str | os.PathLike,
    *,
    rotary: Rotary | str | None = None,
    step: int | None = None,
    mesh: str = "fsdp=-1",
    dtype: str | None = None,
) -> tuple[Decoder, dict]:
    """The decoder of a run and its trained parameters; see load.load.

    Raises:
      UserError: no run at that path, no such checkpoint in it, or `rotary` needs arrays that were
        not trained.
    """
    config, trained = read_model(path, rotary), read_model(path)
    layout = fit_layout(config, sharding.make_layout(mesh))
    decoder = Decoder(config, layout)
    needed, saved = (abstract_params(Decoder(c, layout)) for c in (config, trained))
    check_trained(needed, saved, rotary)
    with Manager(Path(path)) as manager:
        step = manager.latest() if step is None else step
        if step not in manager.steps():
            raise UserError(
                f"no checkpoint of step {step} in {path}: there are"
                f" {manager.steps() or 'none'}; give step=",
                "step",
            )
        if dtype is not None:
            saved = jax.tree.map(lambda leaf: leaf.update(dtype=dtype), saved)
        params = manager.restore(step, {PARAMS: saved})[PARAMS]
    return decoder, _only(params, needed)


def check_trained(needed: dict, saved: dict, rotary: Rotary | str | None) -> None:
    """Refuses an encoding that needs arrays which the checkpoint does not have."""
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(needed):
        if shapes.get(path) != leaf.shape:
            raise UserError(
                f"rotary={rotary!r} needs {jax.tree_util.keystr(path)} of shape {leaf.shape}, which"
                " this run did not train; choose one without arrays of its own",
                "rotary",
            )


def _only(params: Mapping, needed: Mapping) -> dict:
    """Without the arrays that the other encoding does not have."""
    return {
        name: _only(params[name], value) if isinstance(value, Mapping) else params[name]
        for name, value in needed.items()
    }


def load_tokenizer(path: str | os.PathLike) -> data.Tokenizer:
    """The tokenizer that a run was trained with."""
    name = _read_json(path)["tokenizer"]
    return data.load_tokenizer(name if name == "bytes" else str(Path(path) / name))


def abstract_params(decoder: Decoder) -> dict:
    """Shapes, dtypes and shardings of the decoder's parameters; nothing is allocated."""
    # `setup` declares every array; a forward pass would be traced for nothing.
    declare = functools.partial(decoder.init, method=lambda module: module.embedding)
    boxed = jax.eval_shape(declare, jax.random.key(0))["params"]
    assert decoder.layout is not None
    return abstract(boxed, decoder.layout.tree(boxed))


def abstract(boxed_shapes, shardings):
    """A tree of unboxed shapes with shardings: what a restore goes into."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        nn.unbox(boxed_shapes),
        shardings,
    )


class Manager:
    """Saves and restores the checkpoints of one run's folder; use it in a `with` block."""

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
        self._manager = ocp.CheckpointManager(
            (folder / "checkpoints").absolute(),
            options=options,
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                OPTIMIZER: ocp.StandardCheckpointHandler(),
            },
        )

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_) -> None:
        # Waits for a save that is still being written.
        self._manager.close()

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict) -> None:
        """Starts to save {item: tree of arrays}; once it returns the arrays may be donated."""
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**args))

    def restore(self, step: int, items: dict) -> dict:
        """Restores {item: abstract tree with shardings}."""
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in items}


# --- model.json -------------------------------------------------------------------------------


def write_model(folder: Path, config: DecoderConfig, tokenizer: data.Tokenizer) -> None:
    """Writes what `load` needs to rebuild the decoder; the tokenizer's files come along."""
    name = tokenizer.save(folder)
    text = json.dumps({"decoder": config_fields(config), "tokenizer": name}, indent=1)
    (folder / MODEL_FILE).write_text(text + "\n")


def read_model(path: str | os.PathLike, rotary: Rotary | str | None = None) -> DecoderConfig:
    """The decoder configuration of a run; `rotary` changes all of its layers (see `load`)."""
    fields = _read_json(path)["decoder"]
    # A user's own function need not be importable where another encoding replaces it.
    replaced = rotary is not None and variants.sets_rotary(rotary)
    fields["pattern"] = tuple(_read_layer(layer, replaced) for layer in fields["pattern"])
    config = DecoderConfig(**fields)
    return config if rotary is None else variants.apply(config, rotary)[1]


def config_fields(config: DecoderConfig) -> dict[str, Any]:
    """A decoder's configuration as JSON values."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return fields | {"pattern": [_write_layer(spec) for spec in config.pattern]}


def _write_layer(spec: LayerSpec) -> dict[str, Any]:
    """Every field as JSON: the encoding and the components by name, the rest as it is."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    named = {name: fields[name] and fields[name].name for name in variants.COMPONENTS}
    return fields | named | {"rotary": rotary.name_of(spec.rotary)}


def _read_layer(layer: dict[str, Any], replaced: bool) -> LayerSpec:
    named = {name: layer[name] for name in variants.COMPONENTS if layer[name] is not None}
    fields = layer | {name: variants.REGISTRIES[name].make(text) for name, text in named.items()}
    fields["rotary"] = LayerSpec().rotary if replaced else rotary.parse(layer["rotary"])
    return LayerSpec(**fields)


def _read_json(path: str | os.PathLike) -> dict:
    file = Path(path) / MODEL_FILE
    if not file.exists():
        runs = sorted(str(model.parent) for model in Path(path).glob(f"*/{MODEL_FILE}"))
        hint = f"; runs below it: {', '.join(runs)}" if runs else ""
        raise UserError(f"no run at {path}: {file} does not exist{hint}")
    return json.loads(file.read_text())
