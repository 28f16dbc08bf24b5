"""Query scales and QK-norm with cuDNN attention in bf16 against the reference in f32; NVIDIA only.

python benchmarks/query_scales_cudnn.py
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from rope_study.decoder import Decoder, presets, variants

VARIANTS = ("rope", "rope + log_n()", "rope + ss_max()", "p_rope + log_n(train_length=64)",
            "gemma3(window=64) + ss_max()", "rope + logit_scale(factor=0.2)")  # fmt: skip


def main() -> None:
    """Prints the relative error of the logits for each variant."""
    base = dataclasses.replace(presets.small(), heads=8, kv_heads=2, layers=6)
    tokens = jax.random.randint(jax.random.key(0), (2, 256), 0, 256)
    for variant in VARIANTS:
        _, config = variants.apply(base, variant)
        params = nn.unbox(Decoder(config).init(jax.random.key(1), tokens[:, :2]))
        exact = jax.jit(Decoder(config).apply)(params, tokens)[0]
        errors = []
        for backend in ("reference", "cudnn"):
            c = dataclasses.replace(config, compute_dtype="bfloat16", attention=backend)
            got = jax.jit(Decoder(c).apply)(params, tokens)[0]
            errors.append(float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)))
        print(f"{variant:<34} reference bf16 {errors[0]:.1e}  cudnn bf16 {errors[1]:.1e}")


if __name__ == "__main__":
    main()
