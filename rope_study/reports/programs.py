"""The programs of a run, compiled for devices that need not be here, and what they take.

Memory is the compiler's account, what devices exchange is read from its program, and FLOPs are
counted from the model (decoder/flops.py), as the compiler counts a loop's body once.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from rope_study.checkpoints import runs
from rope_study.decoder import Decoder, DecoderConfig, fit_layout
from rope_study.decoder.flops import forward_flops, train_flops
from rope_study.probes import frequency_usage
from rope_study.probes.run import compiled
from rope_study.sharding import Layout
from rope_study.sharding.hlo import Collective, collectives, instructions
from rope_study.training.settings import Run
from rope_study.training.trainer import make_trainer

GIB = 2**30
# Products of f32 at the highest precision take so many passes of the bf16 unit of a TPU.
PASSES = {"bfloat16": 1, "float32": 6}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call of a program computes, on all devices together.

    Attributes:
      tokens: that it reads.
      model_flops: of the model's products, each counted once.
      computed_flops: with those that the backward pass computes again.
      passes: of the bf16 unit for each product.
    """

    tokens: int
    model_flops: float
    computed_flops: float
    passes: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before it is compiled.

    Attributes:
      lowered: what `train` or `probes.run` compiles too.
      arguments: by what they are, trees of shapes with shardings.
      work: of one call.
      devices: how many run it.
    """

    lowered: jax.stages.Lowered
    arguments: dict[str, Any]
    work: Work
    devices: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program.

    Attributes:
      memory: bytes of one device by what they hold.
      traffic: bytes between one device's memory and its units, a loop's body counted once.
      exchanges: between devices.
      exact: whether the length of every loop is known, else unknown ones count once.
    """

    memory: dict[str, int]
    traffic: float
    exchanges: list[Collective]
    exact: bool

    @property
    def total(self) -> int:
        """Bytes that one device has to hold."""
        return sum(self.memory.values())


class OutOfMemory(Exception):
    """The program needs more memory than a device has; the message has the compiler's sizes."""


def train_program(run: Run, layout: Layout) -> Program:
    """The training step of a run.

    Raises:
      UserError: as make_trainer.
    """
    trainer = make_trainer(run, layout)
    rows, length = run.data.batch_size, run.data.length
    state = trainer.abstract_state
    windows = _batch(trainer.layout, rows, length + 1, jnp.int32)
    arguments = {"parameters": state.params, "optimizer state": state.opt_state, "batch": windows}
    tokens = rows * length
    once = train_flops(run.decoder, rows, length)
    work = Work(
        tokens, once, once + tokens * recomputed_flops(run.decoder, length),
        PASSES[run.decoder.compute_dtype],
    )  # fmt: skip
    return Program(trainer.lower(rows, length), arguments, work, layout.mesh.size)


def recomputed_flops(config: DecoderConfig, length: int) -> float:
    """FLOPs a token of products that remat computes again in the backward pass."""
    flops = forward_flops(config, length)
    layers = sum(flops.values()) - flops["unembedding"]
    return {"none": 0.0, "dots": flops["attention"], "full": layers}[config.remat]


def probe_program(config: DecoderConfig, layout: Layout, length: int, dtype: str) -> Program:
    """Frequency usage of as many texts of `length` tokens as the devices read at once.

    Args:
      config: of the decoder.
      layout: the devices.
      length: tokens of a text.
      dtype: of the parameters.

    Raises:
      UserError: sizes that do not divide over the devices.
    """
    config = dataclasses.replace(config, remat="none")
    decoder = Decoder(config, fit_layout(config, layout))
    params = jax.tree.map(
        lambda shape: shape.update(dtype=jnp.dtype(dtype)), runs.abstract_params(decoder)
    )
    layout, measure = compiled(decoder, params, [frequency_usage])
    rows = layout.shards("batch")
    tokens, weights = (_batch(layout, rows, length, kind) for kind in (jnp.int32, jnp.float32))
    flops = forward_flops(config, length)
    once = rows * length * (sum(flops.values()) - flops["unembedding"])
    work = Work(rows * length, once, once, PASSES["float32"])
    arguments = {"parameters": params, "batch": (tokens, weights)}
    return Program(measure.lower(params, tokens, weights), arguments, work, layout.mesh.size)


def compile_program(program: Program) -> Compiled:
    """Compiles, which takes minutes for large models.

    Raises:
      OutOfMemory: where the devices of the program have too little.
    """
    try:
        executable = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(shortage(str(error))) from error
    stats: Any = executable.memory_analysis()
    memory = {name: bytes_on_device(tree) for name, tree in program.arguments.items()}
    memory["other arguments, padding"] = stats.argument_size_in_bytes - sum(memory.values())
    memory["activations and temporaries"] = stats.temp_size_in_bytes
    memory["outputs in a place of their own"] = (
        stats.output_size_in_bytes - stats.alias_size_in_bytes
    )
    memory["program"] = stats.generated_code_size_in_bytes
    cost: Any = executable.cost_analysis()
    executed = instructions(executable.as_text() or "")
    exact = all(instruction.exact for instruction in executed)
    traffic = float(cost["bytes accessed"])
    return Compiled(memory, traffic, collectives(executed, program.devices), exact)


def shortage(message: str) -> str:
    """What a compiler that ran out of memory says of sizes, in one line."""
    line = " ".join(message.split())
    for pattern in (r"Used [\d.]+\w* of [\d.]+\w* hbm", r"the total memory required .*?\)\."):
        if found := re.search(pattern, line):
            return found[0].rstrip(".")
    return line.partition("RESOURCE_EXHAUSTED: ")[2][:200]


def bytes_on_device(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    total = 0
    for shape in jax.tree.leaves(tree):
        part = jax.ShapeDtypeStruct(shape.sharding.shard_shape(shape.shape), shape.dtype)
        total += part.size * part.dtype.itemsize
    return total


def _batch(layout: Layout, rows: int, length: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), dtype, sharding=layout.sharding("batch", None))
