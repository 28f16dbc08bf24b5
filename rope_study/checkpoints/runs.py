"""Checkpoints of this project's own runs, written with Orbax.

A run's folder holds model.json (shapes, encodings by name, tokenizer) and checkpoints/<step>/ with
the items `params`, unboxed, and `optimizer`, and a manifest of their files. Restoring always goes
into an abstract tree with shardings, so what 8 devices saved, one restores, and the other way
round.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epy

from rope_study import data, files, rotary, sharding
from rope_study.decoder import (
    Decoder,
    DecoderConfig,
    LayerSpec,
    fit_layout,
    variants,
)
from rope_study.decoder.config import AUTO
from rope_study.errors import UserError
from rope_study.files import paths
from rope_study.files.paths import to_path
from rope_study.rotary import Rotary

with epy.lazy_imports():  # half a second that only runs need, which are opened later
    import orbax.checkpoint as ocp

    from rope_study.checkpoints import manifest

PARAMS, OPTIMIZER = "params", "optimizer"  # items of a checkpoint
CHECKPOINTS, DAMAGED = "checkpoints", "damaged"  # folders of a run
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
    config = dataclasses.replace(config, attention=AUTO)  # trained elsewhere, maybe
    layout = fit_layout(config, sharding.make_layout(mesh))
    decoder = Decoder(config, layout)
    needed, saved = (abstract_params(Decoder(c, layout)) for c in (config, trained))
    check_trained(needed, saved, rotary)
    if dtype is not None:
        saved = jax.tree.map(lambda leaf: leaf.update(dtype=dtype), saved)
    return decoder, _only(_restore(to_path(path, "checkpoint"), saved, step), needed)


def _restore(path: Path, saved: dict, step: int | None) -> dict:
    """The parameters of a step; an error names the step before it that is intact."""
    with Manager(path) as manager:
        steps = manager.steps()
        step = manager.latest() if step is None else step
        if step not in steps:
            raise UserError(
                f"no checkpoint of step {step} in {path}: there are {steps}"
                if steps
                else f"no checkpoint in {path}: nothing has been saved yet",
                "step" if steps else None,
                "give step=" if steps else None,
            )
        try:
            return manager.restore(step, {PARAMS: saved})[PARAMS]
        except UserError as error:
            others = [other for other in steps if other != step]
            intact, _, _ = manager.newest_intact({PARAMS: saved}, others)
            if intact is None:
                raise UserError(f"{error.problem}; no other step can be read") from error
            raise UserError(
                f"{error.problem}; step {intact} is intact", "step", f"give step={intact}"
            ) from error


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
    return data.load_tokenizer(name if name == "bytes" else str(to_path(path) / name))


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
    """Saves and restores the checkpoints of one run's folder; use it in a `with` block.

    With the arrays lies a manifest of their files (manifest.py), to which `restore` holds them.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0):
        """Saving leaves the newest `keep_last`, and those of steps in `keep_every`, where not 0."""
        self.folder = paths.absolute(folder / CHECKPOINTS)
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(keep_last)]
        keep += [policies.EveryNSteps(keep_every)] if keep_every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), create=False
        )
        handlers: dict[str, Any] = {
            name: ocp.StandardCheckpointHandler() for name in (PARAMS, OPTIMIZER)
        }
        handlers[manifest.ITEM] = manifest.ManifestHandler()  # last: it is of the others
        with self._explained("cannot be read"):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            self.finish()
            self._manager.close()
        except Exception:
            if kind is None:  # else what was raised first says more
                raise

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict) -> None:
        """Starts to save {item: tree of arrays}; once it returns the arrays may be donated.

        Raises:
          UserError: a number is not finite: nothing is saved; or the one before was not written.
        """
        if not_finite := names_not_finite(items):
            raise UserError(
                f"{not_finite[0]} is not finite after step {step}, which is not saved; checkpoints"
                f" there are: {self.steps() or 'none'}",
                "learning_rate",
                "lower learning_rate",
            )
        args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args[manifest.ITEM] = manifest.ManifestArgs()
        with self._explained(f"step {step} is not saved"):
            self._manager.save(step, args=ocp.args.Composite(**args))

    def finish(self) -> None:
        """Waits for a save that is still being written; UserError where it could not be."""
        with self._explained("the last step is not saved"):
            self._manager.wait_until_finished()

    def restore(self, step: int, items: dict) -> dict:
        """Restores {item: abstract tree with shardings}, as it was saved.

        Raises:
          UserError: it is damaged, or cannot be read; on every process alike.
        """
        sharding.on_main(lambda: manifest.check(self.folder / str(step), items))
        self._check_shapes(step, items[PARAMS])
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        problem, restored = None, {}
        try:
            with self._explained(f"step {step} cannot be read"):
                restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except UserError as error:
            problem = error
        if not sharding.all_agree(problem is None):
            raise problem or UserError(f"{self.folder}: step {step} cannot be read elsewhere")
        return {name: restored[name] for name in items}

    def _check_shapes(self, step: int, params: dict) -> None:
        """Refuses parameters, as model.json has them, of other shapes than a checkpoint's.

        Nothing is said of one that cannot be read, as that is said next.
        """
        try:
            stored = self._manager.item_metadata(step)[PARAMS].tree
        except Exception:
            return
        expected, there = (
            {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (params, stored)
        )
        for name in sorted(expected.keys() | there.keys()):
            if expected.get(name) != there.get(name):
                raise UserError(
                    f"{self.folder.parent / MODEL_FILE} does not fit {self.folder / str(step)}:"
                    f" {name} is {expected.get(name, 'absent')} in the one and"
                    f" {there.get(name, 'absent')} in the other"
                )

    def newest_intact(
        self, items: dict, steps: Sequence[int]
    ) -> tuple[int | None, dict, list[UserError]]:
        """The last of the steps that can be restored, its items, and what is wrong with later ones.

        The step is None where there is none.
        """
        problems: list[UserError] = []
        for step in reversed(steps):
            try:
                return step, self.restore(step, items), problems
            except UserError as error:
                problems.append(error)
        return None, {}, problems

    def set_aside(self, steps: Sequence[int]) -> None:
        """Moves checkpoints out of the way, to damaged/ beside checkpoints/."""

        def move() -> None:
            for step in steps:
                files.move_to(self.folder / str(step), self.folder.parent / DAMAGED)

        sharding.on_main(move)
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Whatever Orbax and TensorStore raise - no class in common - as one line."""
        try:
            yield
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.folder}: {what}: {files.explain(error)}") from error
        except Exception as error:
            raise UserError(f"{self.folder}: {what}: {_first_line(error)}") from error


def names_not_finite(arrays: Any) -> list[str]:
    """The names, in a tree of arrays on the devices, of those with a number that is not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    finite = jax.device_get(_are_finite([leaf for _, leaf in leaves]))
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(array)) for array in arrays]


def _first_line(error: Exception) -> str:
    """What an error says, without the pages that TensorStore adds; what the system said first."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if system := re.search(r"os_error_code='(\d+)'", text):
        return str(files.explain(OSError(int(system[1]), os.strerror(int(system[1])))))
    return paths.first_line(text or error).split(" [")[0]


# --- model.json -------------------------------------------------------------------------------


def write_model(folder: Path, config: DecoderConfig, tokenizer: data.Tokenizer) -> None:
    """Writes what `load` needs to rebuild the decoder; the tokenizer's files come along."""
    name = tokenizer.save(folder)
    text = json.dumps({"decoder": config_fields(config), "tokenizer": name}, indent=1)
    files.write_atomically(folder / MODEL_FILE, text + "\n")


def read_model(path: str | os.PathLike, rotary: Rotary | str | None = None) -> DecoderConfig:
    """The decoder configuration of a run; `rotary` changes all of its layers (see `load`)."""
    fields = _read_json(path)["decoder"]
    # A user's own function need not be importable where another encoding replaces it.
    replaced = rotary is not None and variants.sets_rotary(rotary)
    try:
        fields["pattern"] = tuple(_read_layer(layer, replaced) for layer in fields["pattern"])
        config = DecoderConfig(**fields)
    except (TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"{to_path(path) / MODEL_FILE} describes no decoder ({error})") from error
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
    file = to_path(path, "checkpoint") / MODEL_FILE
    if not file.exists():
        runs = sorted(str(model.parent) for model in file.parent.glob(f"*/{MODEL_FILE}"))
        hint = f"; runs below it: {', '.join(runs)}" if runs else ""
        raise UserError(f"no run at {path}: {file} does not exist{hint}")
    return files.read_json(file, ("decoder", "tokenizer"), "the command that trained it writes it")
