"""Loading and exporting against models that Transformers itself made and saved.

How far logits and activations may differ is what docs/checkpoints.md says, a line a case.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import claims  # noqa: E402
import peers  # noqa: E402

from rope_study import checkpoints  # noqa: E402
from rope_study.checkpoints.hugging_face.config import decoder_config  # noqa: E402
from rope_study.checkpoints.hugging_face.families import FAMILIES  # noqa: E402
from rope_study.decoder import Decoder, presets, variants  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 128, (8, 40))  # a row a device; windows are 8
LOADED = claims.tolerances("case", numbers=3)
EXPORTED = claims.tolerances("exported", numbers=1)
ROTATED = {"q_rotated", "k_rotated"}
UNROTATED = {"v", "attention_output", "residual"}


def logits_of(model):
    """What a model of Transformers gives, f32[8, 40, V]."""
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def check_logits(decoder, params, expected, tolerance):
    logits = np.asarray(decoder.apply({"params": params}, jnp.asarray(TOKENS))[0])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


def test_every_case_is_claimed_and_every_claim_tested():
    assert LOADED.keys() == peers.CASES.keys()
    assert EXPORTED.keys() == OURS.keys()


@pytest.mark.parametrize("case", peers.CASES)
def test_loaded_models_have_the_peers_logits_and_activations(case, tmp_path):
    model = peers.make(case)
    logits, golden = peers.run(model, TOKENS)
    model.save_pretrained(tmp_path / case)
    decoder, params = checkpoints.load(tmp_path / case)
    of_logits, of_rotated, of_unrotated = LOADED[case]
    check_logits(decoder, params, logits, of_logits)
    compared = checkpoints.compare(decoder, params, golden)
    allowed = dict.fromkeys(ROTATED, of_rotated) | dict.fromkeys(UNROTATED, of_unrotated)
    allowed["logits"] = of_logits
    differences = {name: 0.0 for name in allowed}
    for row in compared.rows:
        name = row.name.split("/")[-1]
        differences[name] = max(differences[name], row.difference)
    print(case, differences)  # what the docs claim, shown by pytest -rP
    assert all(difference > 0 for difference in differences.values())
    assert all(differences[name] <= allowed[name] for name in allowed), str(compared)


@pytest.mark.parametrize("case", ["gemma3", "gemma4_shared_keys", "llama", "qwen3"])
def test_exported_again_they_are_the_same_models(case, tmp_path):
    model = peers.make(case)
    model.save_pretrained(tmp_path / "theirs")
    decoder, params = checkpoints.load(tmp_path / "theirs")
    checkpoints.export(decoder, params, tmp_path / "ours", shard_bytes=100_000)
    reloaded = type(model).from_pretrained(tmp_path / "ours").eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, reloaded.state_dict()[name]), name
    np.testing.assert_array_equal(logits_of(reloaded), logits_of(model))


LLAMA = {"norm_offset": 0.0, "activation": "silu", "scale_embedding": False, "tied": False}
# variant -> (what else differs from the tiny preset, the family that expresses it)
OURS = {
    "rope": ({}, "Gemma"),
    "nope": ({}, "Gemma"),
    "p_rope(p=0.75)": ({}, "Gemma"),
    "linear_rope(factor=4)": ({}, "Gemma"),
    "yarn_rope(factor=4, context=64)": ({}, "Gemma"),
    "p_rope(p=0.5)": (LLAMA, "Llama"),
    "llama3_rope()": (LLAMA, "Llama"),
    "rope + qk_norm()": (LLAMA, "Qwen3"),
    "gemma2(window=8)": ({"post_norms": True, "final_cap": 30.0}, "Gemma2"),
    "gemma3(window=8)": ({"post_norms": True, "layers": 8}, "Gemma3"),
}


@pytest.mark.parametrize("variant", OURS)
def test_our_own_models_run_in_transformers(variant, tmp_path):
    """A p-RoPE decoder is a Gemma with Transformers' rope type "proportional"; so is NoPE."""
    changes, family = OURS[variant]
    config = dataclasses.replace(variants.apply(presets.tiny(), variant)[1], vocab_size=128)
    decoder = Decoder(dataclasses.replace(config, **changes))
    start = nn.unbox(decoder.init(jax.random.key(0), method=lambda module: module.embedding))
    noise = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    params = jax.tree.map(noise, start["params"])
    checkpoints.export(decoder, params, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(model).__name__ == f"{family}ForCausalLM"
    expected, (tolerance,) = logits_of(model), EXPORTED[variant]
    check_logits(decoder, params, expected, tolerance)
    loaded, loaded_params = checkpoints.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, loaded_params, params)
    check_logits(loaded, loaded_params, expected, tolerance)


CLASSES = {
    "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text", "gemma4_text": "Gemma4Text",
    "llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3", "smollm3": "SmolLM3",
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_the_configuration_classes(kind):
    """Released files leave out what equals them."""
    theirs = getattr(transformers, f"{CLASSES[kind]}Config")()
    theirs.allow_global_per_layer_attribute_access = True
    for name, value in FAMILIES[kind].defaults.items():
        if name == "global_head_dim":  # taken apart by the class
            assert theirs.per_layer_config[5].head_dim == value
        elif name == "sliding_window" and kind == "qwen3":  # off by default
            assert theirs.sliding_window is None and theirs.use_sliding_window is False
        elif name == "rope_theta":
            assert theirs.rope_parameters["rope_theta"] == value
        else:
            assert getattr(theirs, name) == value, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_empty_file_describes_the_classes_default_model(kind):
    theirs = getattr(transformers, f"{CLASSES[kind]}Config")()
    bare = decoder_config(kind, {"model_type": kind})
    full = decoder_config(kind, json.loads(theirs.to_json_string(False)))
    assert bare == full


def test_other_modalities_are_left_out(tmp_path):
    """Gemma 3 from 4B on: a text model inside one that sees."""
    text = dict(peers.SHAPES, num_hidden_layers=7, num_key_value_heads=1, head_dim=16)
    text |= {"sliding_window": 8, "query_pre_attn_scalar": 16}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "image_size": 14, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=1
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "sees")
    decoder, params = checkpoints.load(tmp_path / "sees")
    check_logits(decoder, params, logits_of(model), LOADED["gemma3"][0])


def test_bf16_files_load_as_they_are_and_as_f32(tmp_path):
    model = peers.make("gemma_mqa").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    _, stored = checkpoints.load(tmp_path / "model")
    _, wide = checkpoints.load(tmp_path / "model", dtype="float32")
    assert stored["embedding"].dtype == jnp.bfloat16 and wide["embedding"].dtype == jnp.float32
    expected = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(stored["embedding"], np.float32), expected)
    np.testing.assert_array_equal(wide["embedding"], expected)
