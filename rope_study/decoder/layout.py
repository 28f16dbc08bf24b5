"""The layout that a decoder fits: every array of every layer has to divide over its devices."""

import math
from typing import Any

from flax.traverse_util import flatten_dict

from rope_study.decoder import attention
from rope_study.decoder.config import DecoderConfig
from rope_study.decoder.decoder import Decoder, parameter_tree
from rope_study.errors import UserError
from rope_study.sharding import Layout, one_device

FIELDS = {"embed": "d_model", "mlp": "mlp_hidden", "vocab": "vocab_size"}  # of logical axes


def layout_of(decoder: Decoder) -> Layout:
    """The decoder's own, or one device where it has none."""
    return decoder.layout or one_device()


def fit_layout(config: DecoderConfig, layout: Layout) -> Layout:
    """The layout to run this decoder in: kv_heads stay whole where a layer has too few to split.

    Raises:
      UserError: another dimension of an array does not divide over its devices, rules would split
        one array twice over the same devices, or the attention backend that the configuration
        names does not run on them.
    """
    parameters: dict[str, Any] = flatten_dict(parameter_tree(config), sep=".")
    axes = [
        (name, axis, size)
        for name, p in parameters.items()
        for axis, size in zip(p.axes, p.shape, strict=True)
    ]
    kv_heads = math.gcd(*(size for _, axis, size in axes if axis == "kv_heads"))
    layout = layout.whole_where_uneven(kv_heads=kv_heads)
    for name, axis, size in axes:
        if axis is not None and size % layout.shards(axis):
            raise UserError(
                f"{FIELDS.get(axis, axis)}={size} (of {name}) does not divide over"
                f" {layout.shards(axis)} devices: change it or the mesh",
                "mesh",
            )
    for parameter in parameters.values():
        layout.spec(parameter.axes)
    layout.spec(("batch", "length"))
    for spec in config.pattern:
        attention.choose(config, spec, layout)
    return layout
