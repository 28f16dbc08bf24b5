"""Hugging Face folders without Transformers: what comes back, and everything that is refused.

That the mathematics is the peers' is shown in tests/parity.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rope_study import checkpoints, rotary, sharding
from rope_study.checkpoints import runs
from rope_study.checkpoints.compare import activations
from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.decoder import Decoder, presets, variants
from rope_study.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import load_memory

TINY = presets.tiny()
LLAMA = dataclasses.replace(
    TINY, norm_offset=0.0, activation="silu", scale_embedding=False, tied=False
)
GEMMA3 = dataclasses.replace(
    variants.apply(TINY, "gemma3(window=4)")[1], post_norms=True, layers=8, vocab_size=64
)
CONFIGS = {"gemma": TINY, "llama": LLAMA, "gemma3_text": GEMMA3}


@functools.cache
def make(config):
    """Random parameters of a decoder, about as large as where training starts."""
    random = np.random.default_rng(0)

    def draw(path, array):
        center = 1 - config.norm_offset if "norm" in path[-1].key else 0
        return jnp.asarray(center + 0.2 * random.normal(size=array.shape), jnp.float32)

    shapes = runs.abstract_params(Decoder(config, sharding.one_device()))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture
def folder(tmp_path):
    """A Llama as a folder."""
    checkpoints.export(Decoder(LLAMA), make(LLAMA), tmp_path / "llama")
    return tmp_path / "llama"


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_tensors(folder, **arrays):
    """Replaces tensors, or with None removes them; "__" stands for a dot."""
    file = folder / "model.safetensors"
    tensors = dict(safetensors.numpy.load_file(file))
    for name, array in arrays.items():
        tensors.pop(name.replace("__", "."), None)
        if array is not None:
            tensors[name.replace("__", ".")] = array
    safetensors.numpy.save_file(tensors, file)


@pytest.mark.parametrize(
    "kind, shard_bytes",
    [("gemma", 10**9), ("llama", 20_000), ("gemma3_text", 10**9), ("gemma3_text", 20_000)],
)
def test_what_is_exported_loads_again(kind, shard_bytes, tmp_path):
    config = CONFIGS[kind]
    params = make(config)
    checkpoints.export(Decoder(config), params, tmp_path / "out", shard_bytes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    decoder, loaded = checkpoints.load(tmp_path / "out")
    assert decoder.config.layer_specs == config.layer_specs
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert tuple(loaded["embedding"].sharding.spec) == ("tensor", "fsdp")


def test_names_and_orders_of_axes(folder):
    """One projection stated by hand: rows are heads times head_dim, as in torch.nn.Linear."""
    params = make(LLAMA)
    q = safetensors.numpy.load_file(folder / "model.safetensors")
    q = q["model.layers.1.self_attn.q_proj.weight"]
    assert q.shape == (4 * 16, 32)
    np.testing.assert_array_equal(q[2 * 16 + 5], params["pattern_0"]["q"][1, :, 2, 5])


def test_a_loaded_model_runs_with_another_encoding(folder):
    decoder, params = checkpoints.load(folder, rotary="p_rope(p=0.5) + log_n(train_length=16)")
    _, expected_config = variants.apply(LLAMA, "p_rope(p=0.5) + log_n(train_length=16)")
    tokens = jnp.tile(jnp.arange(24), (8, 1))
    got = decoder.apply({"params": params}, tokens)[0]
    np.testing.assert_allclose(
        got, Decoder(expected_config).apply({"params": params}, tokens)[0], atol=1e-5
    )
    with pytest.raises(UserError, match=r"needs arrays .*'ss_max_scale'"):
        checkpoints.load(folder, rotary="rope + ss_max()")


def test_dtype_of_parameters(folder):
    _, params = checkpoints.load(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(UserError, match=r"dtype='float8' is not one of float32, bfloat16"):
        checkpoints.load(folder, dtype="float8")


def test_loading_holds_the_parameters_and_one_tensor(tmp_path):
    """Peak memory of a process that loads 220 MB of bf16 in 75 tensors."""
    shapes = {"vocab_size": 4096, "d_model": 1024, "layers": 8, "heads": 8, "kv_heads": 8}
    config = dataclasses.replace(LLAMA, **shapes, head_dim=128, mlp_hidden=3072)
    largest = load_memory.write(config, tmp_path)
    measured = load_memory.load(tmp_path)
    assert measured["parameters"] > 200e6
    added = measured["peak"] - measured["before"]
    # 90 MB are for compiling and running at all, at any size; a second copy would be 235 MB more.
    assert added < measured["parameters"] + 2 * largest + 120e6


# --- files of today and of before -------------------------------------------------------------

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, old, new",
    [
        ("llama", {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}),
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        ),
        (
            "gemma3_text",
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
            | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                }
            },
        ),
        (
            "gemma4_text",
            {"global_head_dim": 32, "hidden_size_per_layer_input": 0},
            {
                "per_layer_config": {"05": {"head_dim": 32}, "07": {"head_dim": 32}},
                "hidden_size_per_layer_input": 0,
            },
        ),
    ],
)
def test_old_and_new_files_describe_the_same_decoder(kind, old, new):
    base_fields = {"model_type": kind, **SIZES}
    read = lambda fields: decoder_config(kind, base_fields | fields)  # noqa: E731
    assert read(old) == read(new)
    setting = "rope_theta" if "rope_theta" in old else "global_head_dim"
    assert read(old | {setting: 64}) != read(new)


def test_yarn_longrope_and_dynamic_are_read():
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    cases = {
        "yarn_rope": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "truncate": False},
        "dynamic_ntk_rope": {"rope_type": "dynamic", "factor": 2.0},
        "longrope": longrope | {"factor": 4.0},
    }
    for name, parameters in cases.items():
        parameters = {"rope_theta": 1e4, "original_max_position_embeddings": 64} | parameters
        config = decoder_config(
            "llama", {"model_type": "llama", **SIZES, "rope_parameters": parameters}
        )
        assert config.pattern[0].rotary.name.startswith(f"{name}(")
        assert "context=64" in config.pattern[0].rotary.name


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "gema"}, r"config\.json: model_type 'gema' is not supported.*'gemma'"),
        ({"model_type": "gpt2"}, r"model_type 'gpt2'.*Supported: gemma, gemma2"),
        ({"rope_parameters": {"rope_type": "yarm"}}, r"rope type 'yarm'.*'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"'linear' lacks the parameter 'factor'"),
        ({"attention_bias": True}, r"attention_bias=True is not supported \(biases"),
        ({"quantization_config": {"bits": 4}}, r"quantised weights: load the unquantised"),
        ({"hidden_act": "relu"}, r"activation 'relu' is not silu"),
        ({"hidden_size": "32"}, r"setting is missing or of the wrong type"),
        ({"num_attention_heads": 3}, r"heads=3 is not a multiple"),
        ({"intermediate_size": 72}, r"gate_proj\.weight' has shape \(64, 32\), .*\(72, 32\)"),
        (
            {"num_hidden_layers": 3},
            r"tensor 'model\.layers\.2\.input_layernorm\.weight' is missing",
        ),
        ({"num_hidden_layers": 1}, r"tensor 'model\.layers\.1\..*' has no place"),
        ({"tie_word_embeddings": False, "vocab_size": 400}, r"has shape \(384, 32\)"),
    ],
)
def test_wrong_configurations_are_refused(fields, message, folder):
    change_config(folder, **fields)
    with pytest.raises(UserError, match=message):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"model__norm__weight": None}, r"model\.safetensors: tensor 'model\.norm.*missing"),
        (
            {"model__norm__weight": np.ones(3, np.float32)},
            r"'model\.norm\.weight' has shape \(3,\)",
        ),
        ({"model__layers__0__bias": np.ones(3)}, r"'model\.layers\.0\.bias' has no place"),
        ({"lm_head__weight": None}, r"'lm_head\.weight' is missing"),
        ({"model__embed_tokens__weight": None}, r"no tensor named \.\.\.embed_tokens\.weight"),
    ],
)
def test_wrong_tensors_are_refused(arrays, message, folder):
    change_tensors(folder, **arrays)
    with pytest.raises(UserError, match=message):
        checkpoints.load(folder)


def test_a_file_that_is_cut_off_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors.* is cut off, corrupt"):
        checkpoints.load(folder)


def test_pickle_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*pickle files are refused"):
        checkpoints.load(folder)


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"no run at"):
        checkpoints.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .*config\.json and \*\.safetensors"):
        checkpoints.load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"holds none of tokenizer\.model"):
        checkpoints.load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
        checkpoints.load(folder)


def test_a_second_copy_of_a_tied_table_and_old_buffers_are_left_out(tmp_path):
    params = make(TINY)
    checkpoints.export(Decoder(TINY), params, tmp_path / "gemma")
    change_tensors(
        tmp_path / "gemma",
        lm_head__weight=np.asarray(params["embedding"]),
        model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(8, np.float32),
    )
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(tmp_path / "gemma")[1], params)


@pytest.mark.parametrize("variant", ["nope + alibi()", "fope(context=64)", "irope(chunk=4)"])
def test_what_no_family_expresses_is_not_exported(variant, tmp_path):
    _, config = variants.apply(TINY, variant)
    with pytest.raises(UserError, match=r"no model of Transformers expresses this decoder"):
        checkpoints.export(Decoder(config), make(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_nothing(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty; nothing was changed"):
        checkpoints.export(Decoder(TINY), make(TINY), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- compare ----------------------------------------------------------------------------------


def golden_of(config, params, tokens):
    """What a peer with these parameters would give: logits and activations of every layer."""
    return activations(Decoder(config), params, tokens) | {"tokens": np.asarray(tokens)}


def test_compare_names_the_first_tensor_that_differs():
    config = dataclasses.replace(LLAMA, layers=3)
    params, tokens = make(config), jnp.arange(10)[None]
    golden = golden_of(config, params, tokens)
    agreement = checkpoints.compare(Decoder(config), params, golden)
    assert agreement.first_difference is None and "everything agrees" in str(agreement)
    assert [row.name for row in agreement.rows][:2] == ["embedding", "layer_0/q"]
    wrong_params = jax.tree.map(lambda a: a, params)
    wrong_params["pattern_0"]["k"] = params["pattern_0"]["k"].at[1].multiply(1.5)
    compared = checkpoints.compare(Decoder(config), wrong_params, golden)
    assert compared.first_difference == "layer_1/k"
    assert "ours is 1.5 times golden" in str(compared)


def test_compare_says_where_pairs_are_interleaved(tmp_path):
    params, tokens = make(LLAMA), jnp.arange(10)[None]
    golden = golden_of(LLAMA, params, tokens)
    turned = rotary.convert_layout(golden["layer_0/q"], "half_split", "interleaved")
    np.savez(tmp_path / "golden.npz", **{"tokens": tokens, "layer_0/q": turned})
    compared = checkpoints.compare(Decoder(LLAMA), params, tmp_path / "golden.npz")
    assert "pairs are taken as interleaved" in str(compared)


@pytest.mark.parametrize(
    "golden, message",
    [
        ({}, r"golden has no 'tokens'"),
        ({"tokens": np.ones((1, 2), int)}, r"nothing but tokens"),
        (
            {"tokens": np.ones((1, 2), int), "layer_0/qq": np.ones(2)},
            r"no 'layer_0/qq' to compare.*'layer_0/q'",
        ),
        (
            {"tokens": np.ones((1, 2), int), "logits": np.ones(2)},
            r"logits is \(1, 2, 384\) here and \(2,\) in golden",
        ),
    ],
)
def test_wrong_golden_values_are_refused(golden, message):
    with pytest.raises(UserError, match=message):
        checkpoints.compare(Decoder(LLAMA), make(LLAMA), golden)
