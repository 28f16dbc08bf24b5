"""Memory of one text on 1 to 8 devices that share its length (context=), by the compiler.

    python benchmarks/context_axis.py                                # 8 fake devices of this CPU
    python benchmarks/context_axis.py --topology=v5e:2x4 --sizes 1 8 --no-probe   # needs libtpu

Two layers of Gemma 2B with a vocabulary of 32,768 and full rematerialisation: a training step in
bf16 with AdamW, and a probe run in f32 that reads attention (frequency_usage, head_patterns).
Nothing runs: the numbers are GiB that the compiled program holds on each device. "keys": what the
gathered keys and values of one layer take, of which a ring would hold two parts of `context`.
"(whole)": with parameters that are not split along context (rules.embed=fsdp). nan: does not fit.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from rope_study import probes
from rope_study.checkpoints import runs
from rope_study.decoder import Decoder, DecoderConfig, fit_layout, presets
from rope_study.probes.run import compiled
from rope_study.sharding import MESH_AXES, Layout, Rules
from rope_study.training import settings
from rope_study.training.trainer import Trainer

PROBES = [probes.frequency_usage, probes.head_patterns()]
WHOLE = Rules(embed=("fsdp",))  # parameters that context does not split


def main() -> None:
    """Prints a row for each length and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", help="of TPUs, such as v5e:2x4")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32_768])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--no-probe", action="store_true", help="training steps only")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(args.sizes))
    devices = jax.devices()
    if args.topology:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    config = dataclasses.replace(presets.gemma_2b(), layers=2, vocab_size=32_768, remat="full")
    print(f"2 layers of gemma_2b, 1 text, {devices[0].device_kind}, jax {jax.__version__}; GiB")
    print("                   training step                        | probe run")
    print(" tokens context |  state (whole)  temporaries (whole)  keys | temporaries  keys")
    for length in args.lengths:
        for size in args.sizes:
            grid = np.array(devices[:size]).reshape(
                [size if a == "context" else 1 for a in MESH_AXES]
            )
            split, whole = (Layout(Mesh(grid, MESH_AXES), rules) for rules in (Rules(), WHOLE))
            (state, held), (whole_state, whole_held) = (
                training(config, layout, length) for layout in (split, whole)
            )
            keys = 2 * length * config.kv_heads * config.head_dim / 2**30
            row = (
                f"{length:7,} {size:7} | {state:6.2f} {whole_state:6.2f}  {held:9.2f}"
                f" {whole_held:9.2f} {2 * keys:8.3f}"
            )
            if not args.no_probe:
                row += f" | {probing(config, split, length):9.2f} {4 * keys:9.3f}"
            print(row, flush=True)


def training(config: DecoderConfig, layout: Layout, length: int) -> tuple[float, float]:
    """GiB of parameters with their optimizer's state, and of temporaries; NaN: does not fit."""
    train = settings.TrainSettings(**settings.default().train.to_dict())
    trainer = Trainer(Decoder(config, fit_layout(config, layout)), train, seed=0)
    windows = jax.ShapeDtypeStruct((1, length + 1), jnp.int32)
    try:
        memory = trainer.step.lower(trainer.abstract_state, windows).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("nan"), float("nan")
    return memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30


def probing(config: DecoderConfig, layout: Layout, length: int) -> float:
    """GiB of temporaries."""
    decoder = Decoder(dataclasses.replace(config, remat="none"), fit_layout(config, layout))
    params = runs.abstract_params(decoder)
    _, measure = compiled(decoder, params, PROBES)
    place = layout.sharding("batch", None)
    tokens, weights = (
        jax.ShapeDtypeStruct((1, length), dtype, sharding=place)
        for dtype in (jnp.int32, jnp.float32)
    )
    memory = measure.lower(params, tokens, weights).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**30


if __name__ == "__main__":
    main()
