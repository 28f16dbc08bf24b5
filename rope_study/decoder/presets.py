"""Decoders by name: released shapes, and small ones that keep many rotary pairs a head."""

from rope_study.decoder.config import DecoderConfig
from rope_study.registry import Registry

PRESETS = Registry("preset")


@PRESETS.add
def gemma_2b() -> DecoderConfig:
    """Gemma 2B (Table 1 of the Gemma report): multi-query, 2.51e9 parameters."""
    return DecoderConfig(
        vocab_size=256_128, d_model=2048, layers=18, heads=8, kv_heads=1, head_dim=256,
        mlp_hidden=16_384, compute_dtype="bfloat16", remat="full",
    )  # fmt: skip


@PRESETS.add
def gemma_7b() -> DecoderConfig:
    """Gemma 7B, the model the paper reads: multi-head, 8.54e9 parameters."""
    return DecoderConfig(
        vocab_size=256_128, d_model=3072, layers=28, heads=16, kv_heads=16, head_dim=256,
        mlp_hidden=24_576, compute_dtype="bfloat16", remat="full",
    )  # fmt: skip


@PRESETS.add
def small() -> DecoderConfig:
    """Trains in minutes on two CPU cores, with 32 rotary pairs in every head."""
    return DecoderConfig(
        vocab_size=384, d_model=128, layers=4, heads=4, kv_heads=1, head_dim=64, mlp_hidden=384
    )


@PRESETS.add
def tiny() -> DecoderConfig:
    """For tests: compiles in a second."""
    return DecoderConfig(
        vocab_size=384, d_model=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_hidden=64
    )
