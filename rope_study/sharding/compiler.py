"""What XLA is told beside its defaults, and what was measured for it."""

import functools
from typing import Any

import jax
from jax.experimental.layout import Layout as Order
from jax.experimental.layout import with_layout_constraint

from rope_study.sharding.mesh import Layout

Options = dict[str, Any]


def lean_options(params: Any, layout: Layout) -> Options:
    """Compiler options for a program that computes in f32 with parameters of 16 bits.

    On a CPU XLA would convert the parameters of all layers to f32 before the loop over layers
    begins, three times their memory in all, instead of a layer at a time. Other devices need none.
    """
    narrow = any(leaf.dtype.itemsize == 2 for leaf in jax.tree.leaves(params))
    if not narrow or _platform(layout) != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def reading_options(params: Any, layout: Layout) -> Options:
    """Compiler options for forward passes in f32 over whole texts, as probes run them.

    Without them XLA copies the weights of a layer long before it needs them. Measured at Gemma 7B's
    layers and 4,096 tokens (benchmarks/probe_overhead.py, results/probe_*.txt):

    - On one GPU there is no communication that the latency hiding scheduler could hide; without it
      a forward pass holds 1.17 GiB beside the parameters instead of 1.56, in the same time.
    - On CPUs the scheduler that saves memory holds 1.36 GiB instead of 1.63 of two layers, in the
      same time, and products by Eigen are faster than those by YNNPACK from some 2,000 tokens on.
    """
    options: Options = {}
    if _platform(layout) == "gpu" and layout.mesh.size == 1:
        options = {"xla_gpu_enable_latency_hiding_scheduler": False}
    elif _platform(layout) == "cpu":
        options = {
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "xla_cpu_experimental_ynn_fusion_type": "",
        }
    return lean_options(params, layout) | known(options)


def scoring_options(params: Any, layout: Layout) -> Options:
    """The same for forward passes that go on to losses, so to the logits of a whole vocabulary.

    On CPUs products by YNNPACK stay: with Gemma 3's table of 262,144 x 640, 1,024 tokens take 4.2
    CPU seconds and 8.5 by Eigen, 256 tokens 1.1 and 5.5.
    """
    options = reading_options(params, layout)
    options.pop("xla_cpu_experimental_ynn_fusion_type", None)
    return options


def in_row_major(arrays: Any, layout: Layout) -> Any:
    """The same arrays in the memory order of parameters, where several GPUs have summed them.

    To scatter sums along another dimension than the first, XLA keeps that dimension major, and an
    optimizer would read such gradients across the grain of its other arrays: two H200s kept 92.0 %
    of the speed of one, and 98.7 % with gradients put in order first (results/scaling_h200.json).
    """
    if _platform(layout) != "gpu" or layout.mesh.size == 1:
        return arrays
    ordered = jax.tree.map(
        lambda a: with_layout_constraint(a, Order(major_to_minor=tuple(range(a.ndim)))), arrays
    )
    return jax.lax.optimization_barrier(ordered)  # else the reordering fuses with what reads


def _platform(layout: Layout) -> str:
    return layout.mesh.devices.flat[0].platform


def known(options: Options) -> Options:
    """Those that this version of XLA has: one that it lost should cost speed, not the result."""
    return {option: value for option, value in options.items() if _is_known(option, value)}


@functools.cache
def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
