"""What a run begins with: weights drawn by its seed, or those of another checkpoint."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from rope_study import checkpoints
from rope_study.errors import UserError
from rope_study.sharding import is_main_process

Tree = dict[str, Any]


def continued(path: str, drawn: Tree) -> Tree:
    """The parameters of a checkpoint in the place of drawn ones.

    Args:
      path: what `checkpoints.load` takes.
      drawn: the parameters of the run as its seed draws them, f32. Arrays that the checkpoint does
        not have - of another encoding, norm or score function - stay as they are; those that this
        run has no use for are left out. Both are named on stderr.

    Raises:
      UserError: an array of another shape; or as `checkpoints.load`.
    """
    _, loaded = checkpoints.load(path, dtype="float32")
    there: Tree = flatten_dict(loaded, sep="/")
    needed: Tree = flatten_dict(drawn, sep="/")
    for name in needed.keys() & there.keys():
        if needed[name].shape != there[name].shape:
            raise UserError(
                f"{name} is {there[name].shape} in {path} and {needed[name].shape} in this run",
                "init_from",
            )
    if is_main_process():
        for names, what in (
            (needed.keys() - there.keys(), "are not in it and start anew"),
            (there.keys() - needed.keys(), "are left out"),
        ):
            if names:
                print(f"{path}: {', '.join(sorted(names))} {what}", file=sys.stderr)
    return unflatten_dict(
        {
            name: jax.device_put(jnp.asarray(there.get(name, array), array.dtype), array.sharding)
            for name, array in needed.items()
        },
        sep="/",
    )
