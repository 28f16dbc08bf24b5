"""What probing costs: frequency usage beside a bare forward pass, and beside PyTorch hooks.

    python benchmarks/probe_overhead.py --layers=2 --length=4096       # Gemma 7B's layer shapes
    python benchmarks/probe_overhead.py --layers=8 --dtype=bfloat16    # on a GPU

One process, the variants in turn, so that ratios are of one machine at one time. Random weights, a
small vocabulary (no logits are made), one text. Peers: Transformers' Gemma with forward hooks on
the projections of q, k and v, which either reduce there and then or keep what they saw and reduce
afterwards; --peer=no leaves PyTorch out. JAX compiles as probes do, and once by XLA's defaults.
Memory above the weights is the compiler's figure for JAX on a GPU, the allocator's for PyTorch
there, and the growth of the process on a CPU (Linux).
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rope_study import probes
from rope_study.decoder import Decoder, presets
from rope_study.sharding import one_device
from rope_study.sharding.compiler import reading_options

VOCABULARY = 1024


def jax_variants(config, tokens: np.ndarray) -> dict[str, tuple[Callable, int]]:
    """{name: (run once, bytes of the program's temporaries and outputs)}."""
    decoder = Decoder(config)
    init = jax.jit(lambda key: nn.unbox(decoder.init(key, jnp.zeros((1, 2), jnp.int32))))
    variables, ids = init(jax.random.key(0)), jnp.asarray(tokens)

    def forward(variables, ids, used):
        x, aux = decoder.apply(variables, ids, probes=used, method="features")
        return x.astype(jnp.float32).sum(), aux

    programs, usage = {}, [probes.frequency_usage]
    options = reading_options(variables, one_device())
    for name, used, xla_options in (
        ("forward", [], options),
        ("forward + frequency usage", usage, options),
        ("the same with XLA's own options", usage, {}),
    ):
        program = (
            jax.jit(lambda v, t, used=used: forward(v, t, used))
            .lower(variables, ids)
            .compile(xla_options)
        )
        memory = program.memory_analysis()
        size = memory.temp_size_in_bytes + memory.output_size_in_bytes
        run = lambda program=program: jax.block_until_ready(program(variables, ids))  # noqa: E731
        programs[f"rope_study: {name}"] = run, size
    programs["rope_study: parameters"] = None, sum(a.nbytes for a in jax.tree.leaves(variables))
    return programs


def torch_variants(config, tokens: np.ndarray, device: str) -> dict[str, Callable]:
    """{name: run once} of the same shapes in Transformers."""
    import torch
    from transformers import GemmaConfig, GemmaModel

    torch.backends.cuda.matmul.allow_tf32 = False
    shapes = GemmaConfig(
        vocab_size=VOCABULARY, hidden_size=config.d_model, intermediate_size=config.mlp_hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = GemmaModel(shapes).to(getattr(torch, config.compute_dtype)).eval()
    ids = torch.tensor(tokens, device=device)
    half = config.head_dim // 2

    def norms(x: torch.Tensor) -> torch.Tensor:
        """Mean norm of every pair [heads, head_dim / 2] of x[B, T, heads * head_dim]."""
        pairs = x.float().unflatten(-1, (-1, 2, half))
        return pairs.square().sum(dim=-2).sqrt().mean(dim=(0, 1))

    def projections():
        return [
            projection
            for layer in model.layers
            for projection in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
            )
        ]

    def forward():
        with torch.no_grad():
            out = model(ids, use_cache=False).last_hidden_state
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    def hooked(see: Callable):
        seen: list = []
        handles = [
            p.register_forward_hook(lambda _, __, out: seen.append(see(out))) for p in projections()
        ]
        forward()
        results = [x if see is norms else norms(x) for x in seen]
        for handle in handles:
            handle.remove()
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    return {
        "transformers: forward": forward,
        "transformers: hooks that reduce": lambda: hooked(norms),
        "transformers: hooks that keep": lambda: hooked(lambda x: x),
    }


def torch_peak(run: Callable) -> int:
    """Bytes on the GPU above what was there before, at the peak of one run."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def resident(kind: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at the peak; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def measure(variants: dict[str, Callable], repeats: int) -> tuple[dict[str, list], dict[str, list]]:
    """Seconds of each run, in turn, and bytes the process grew by in it; the first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    grown: dict[str, list[int]] = {name: [] for name in variants}
    for i in range(repeats + 1):
        for name, run in variants.items():
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before, start = resident("VmRSS"), time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
                grown[name].append(resident("VmHWM") - before)
    return seconds, grown


def main() -> None:
    """Runs all variants in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gemma_7b", choices=presets.PRESETS)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", default="yes", choices=("yes", "no"))
    args = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    config = dataclasses.replace(
        presets.PRESETS.make(args.preset), layers=args.layers, vocab_size=VOCABULARY, remat="none",
        compute_dtype=args.dtype,
        attention="cudnn" if gpu and args.dtype == "bfloat16" else "reference",
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (args.batch, args.length))
    programs = jax_variants(config, tokens)
    parameters = programs.pop("rope_study: parameters")[1]
    runs = {name: run for name, (run, _) in programs.items()}
    memory = {name: size for name, (_, size) in programs.items()}
    device = "cuda" if gpu else "cpu"
    if args.peer == "yes":
        peers = torch_variants(config, tokens, device)
        runs |= peers
        if gpu:
            memory |= {name: torch_peak(run) for name, run in peers.items()}
    seconds, grown = measure(runs, args.repeats)
    if not gpu:
        memory = {name: statistics.median(sizes) for name, sizes in grown.items()}
    print(
        f"{args.preset} shapes, {args.layers} layers, {args.batch} x {args.length}, {args.dtype},"
        f" {jax.devices()[0].device_kind}, parameters {parameters / 2**30:.2f} GiB"
    )
    print(
        f"{'variant':<40} {'median s':>9} {'min s':>8} {'to forward':>10} {'GiB above weights':>17}"
    )
    base = None
    for name, times in seconds.items():
        median = statistics.median(times)
        base = median if name.endswith(": forward") else base
        print(
            f"{name:<40} {median:9.3f} {min(times):8.3f} {median / base:10.3f}"
            f" {memory[name] / 2**30:17.3f}"
        )


if __name__ == "__main__":
    main()
