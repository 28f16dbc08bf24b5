"""Memory that probing takes: by the compiler for any device, and measured where it runs.

    python benchmarks/probe_memory.py --preset=gemma_7b --length=8192             # this device
    python benchmarks/probe_memory.py --preset=gemma_7b --topology=v5e:2x4        # a TPU host

Parameters in bf16, activations in f32, one text, frequency usage in all layers. --run also runs it,
with random weights, and prints the peak that the device saw. A topology needs libtpu, and no TPU.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from rope_study import probes
from rope_study.checkpoints import runs
from rope_study.decoder import Decoder, fit_layout, presets
from rope_study.probes.run import compiled
from rope_study.sharding import MESH_AXES, Layout, one_device


def make_layout(topology: str | None) -> Layout:
    """One device here, or all chips of a topology along the tensor axis: one text is not split."""
    if topology is None:
        return one_device()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Layout(Mesh(np.array(devices).reshape(1, 1, 1, -1), MESH_AXES))


def main() -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gemma_7b", choices=presets.PRESETS)
    parser.add_argument("--length", type=int, default=8192, help="tokens of the text")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset's")
    parser.add_argument("--topology", help="of TPUs, such as v5e:2x4")
    parser.add_argument("--run", action="store_true", help="also run it")
    args = parser.parse_args()
    config = presets.PRESETS.make(args.preset)
    config = dataclasses.replace(config, layers=args.layers or config.layers, remat="none")
    decoder = Decoder(config, fit_layout(config, make_layout(args.topology)))
    shapes = jax.tree.map(
        lambda leaf: leaf.update(dtype=jnp.bfloat16), runs.abstract_params(decoder)
    )
    _, measure = compiled(decoder, shapes, [probes.frequency_usage])
    place = decoder.layout.sharding("batch", None)
    tokens, weights = (
        jax.ShapeDtypeStruct((1, args.length), dtype, sharding=place)
        for dtype in (jnp.int32, jnp.float32)
    )
    program = measure.lower(shapes, tokens, weights).compile()
    memory = program.memory_analysis()
    device = decoder.layout.mesh.devices.flat[0]
    print(
        f"{args.preset}, {config.layers} layers, {args.length} tokens,"
        f" {decoder.layout.mesh.size} x {device.device_kind}: a device holds"
        f" {gib(memory.argument_size_in_bytes)} of parameters and"
        f" {gib(memory.temp_size_in_bytes)} of temporaries, and gives"
        f" {gib(memory.output_size_in_bytes)}"
    )
    if args.run:
        run(program, shapes, tokens, weights, device)


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"


def run(program, shapes, tokens, weights, device) -> None:
    """Runs the program twice on random weights; prints seconds and the device's peak."""
    make = jax.jit(
        lambda: jax.tree.map(
            lambda leaf: (
                0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
            ),
            shapes,
        )
    )
    params = jax.block_until_ready(make())
    ids, ones = jnp.ones(tokens.shape, jnp.int32), jnp.ones(weights.shape, jnp.float32)
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(program(params, ids, ones))
        seconds = time.perf_counter() - start
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    seen = f", peak {peak / 2**30:.2f} GiB" if peak else ""
    print(f"ran in {seconds:.2f} s{seen}")


if __name__ == "__main__":
    main()
