"""Makes the tiny official checkpoints beside this file with Google's own `gemma` package.

Not part of the test suite: docs/official_gemma.md says how to set up an environment for it.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from gemma.gm.ckpts import _checkpoint
from gemma.gm.nn import _config, _modules, _transformer
from gemma.gm.nn.gemma4 import _config as config4
from gemma.gm.nn.gemma4 import _modules as modules4
from gemma.gm.nn.gemma4 import _transformer as transformer4

HERE = Path(__file__).parent
GLOBAL, LOCAL = _modules.AttentionType.GLOBAL, _modules.AttentionType.LOCAL_SLIDING
SHAPES = {"num_embed": 64, "embed_dim": 16, "hidden_dim": 24, "head_dim": 8, "num_heads": 4}
PLAIN = {"use_post_attn_norm": False, "use_post_ffw_norm": False, "final_logit_softcap": None}
POST = {"use_post_attn_norm": True, "use_post_ffw_norm": True, "sliding_window_size": 6}
GEMMA2 = POST | {
    "final_logit_softcap": 4.0,  # 30 and 50 in the released ones: would hardly bend tiny logits
    "attn_logits_soft_cap": 2.0,
    "attention_types": (LOCAL, GLOBAL, LOCAL),
    "num_kv_heads": 2,
}
GEMMA3 = POST | {
    "final_logit_softcap": None,
    "attention_types": (LOCAL,) * 5 + (GLOBAL, LOCAL),
    "num_kv_heads": 1,
    "use_qk_norm": True,
    "transpose_gating_einsum": True,
    "local_base_frequency": 10_000,
    "global_base_frequency": 1_000_000,
}
BY_WIDTH = _config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
GLOBAL_ONLY = PLAIN | {"attention_types": (GLOBAL,) * 2}
LARGE3 = {
    "num_kv_heads": 2,
    "attention_types": GEMMA3["attention_types"][:6],
    "query_pre_attn_norm": BY_WIDTH,
    "global_scale_factor": 8.0,
}
CONFIGS = {
    "gemma1_mqa": ("flat", GLOBAL_ONLY | {"num_kv_heads": 1}),  # like 2B
    "gemma1_mha": ("nested", GLOBAL_ONLY | {"num_kv_heads": 4}),  # like 7B
    "gemma2": ("flat", GEMMA2),  # like 2B
    "gemma3": ("flat", GEMMA3),  # like 270M and 1B
    "gemma3_large": ("nested", GEMMA3 | LARGE3),  # like 27B, without the vision encoder
}
GLOBAL4, LOCAL4 = modules4.AttentionType.GLOBAL, modules4.AttentionType.LOCAL_SLIDING
GEMMA4 = POST | {  # like 31B: no per-layer inputs, no shared keys
    "final_logit_softcap": 30.0,
    "attention_types": (LOCAL4, LOCAL4, GLOBAL4),
    "num_kv_heads": 2,
    "num_global_kv_heads": 1,
    "global_key_size": 16,
    "k_eq_v_global": True,
    "global_rope_proportion": 0.25,
    "local_rope_proportion": 1.0,
    "global_base_frequency": 1_000_000,
}


def random_weights(shapes, rng, norm_center):
    """Matrices of about unit gain; norm scales spread by a half around what leaves x as it is."""

    def draw(shape):
        if len(shape.shape) == 1:
            drawn = norm_center + rng.uniform(-0.5, 0.5, shape.shape)
        else:
            drawn = rng.normal(0, shape.shape[-1] ** -0.5, shape.shape)
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree.map(draw, shapes)


def plain(config) -> dict:
    """What of the peer's configuration is a number, for the tests to read."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    fields["attention_types"] = [kind.name for kind in config.attention_types]
    if hasattr(config, "query_pre_attn_scalar"):
        fields["query_scale"] = config.query_pre_attn_scalar()
    keep = (int, float, bool, list, type(None))
    return {key: value for key, value in fields.items() if isinstance(value, keep)}


def make(name, model, form, seed, norm_center=0.0):
    """Writes <name>/<form>, the checkpoint, and <name>/peer.npz."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 64, (1, 24)).astype(np.int32)  # 0 is padding, which the peer masks
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = random_weights(flax.core.unfreeze(shapes), rng, norm_center)
    logits = model.apply({"params": params}, jnp.asarray(tokens)).logits
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    tree = _checkpoint._nested_to_flat(params) if form == "flat" else params
    _checkpoint.save_params(tree, folder / form, wait_until_finished=True)
    (folder / form / "commit_success.txt").unlink(missing_ok=True)  # has this machine's paths
    config = json.dumps(plain(model.config))
    np.savez_compressed(folder / "peer.npz", tokens=tokens, logits=logits, config=config)
    print(f"{name}: logits {logits.shape} {logits.dtype}, deviation {float(logits.std()):.3f}")


def main(names):
    """The same numbers every time; Gemma 4 only where it is named."""
    for seed, (name, (form, fields)) in enumerate(CONFIGS.items()):
        if not names or name in names:
            config = _config.TransformerConfig(**(SHAPES | fields))
            make(name, _transformer.Transformer(config=config, dtype=jnp.float32), form, seed)
    if "gemma4" in names:
        config = config4.TransformerConfig(**(SHAPES | GEMMA4))
        model = transformer4.Transformer(config=config, dtype=jnp.float32)
        make("gemma4", model, "nested", 100, norm_center=1.0)  # norms: scale, not 1 + scale


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    main(sys.argv[1:])
