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

from rope_study import checkpoints, data, rotary, sharding
from rope_study.checkpoints import runs
from rope_study.checkpoints.compare import activations
from rope_study.checkpoints.hugging_face.config import decoder_config
from rope_study.checkpoints.hugging_face.fields import read_fields
from rope_study.decoder import Decoder, presets, variants
from rope_study.decoder.sampling import generate
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
            tensors[name.replace("__", ".")] = np.ascontiguousarray(array)
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
    assert tuple(loaded["embedding"].sharding.spec) == ("tensor", ("fsdp", "context"))


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
        about = {"model_type": "llama", **SIZES, "max_position_embeddings": 64}
        config = decoder_config("llama", about | {"rope_parameters": parameters})
        assert config.pattern[0].rotary.name.startswith(f"{name}(")
        assert "context=64" in config.pattern[0].rotary.name


def read(kind, **fields):
    """The decoder of a family's file that says no more."""
    return decoder_config(kind, {"model_type": kind, **SIZES} | fields)


def test_null_is_a_setting():
    """Also where the family has a default: flash attention wants Gemma 2 without caps."""
    caps = dict.fromkeys(["attn_logit_softcapping", "final_logit_softcapping"])
    assert read("gemma2").final_cap == 30 and read("gemma2").pattern[0].score_function.cap == 50
    assert read("gemma2", **caps).final_cap is None
    assert {spec.score_function for spec in read("gemma2", **caps).pattern} == {None}
    for kind in ("llama", "qwen3", "mistral", "smollm3"):
        assert read(kind, num_key_value_heads=None).kv_heads == 4
    assert read("llama", head_dim=None).head_dim == 8
    assert read("gemma", bos_token_id=None).bos is None
    with pytest.raises(UserError, match=r"head_dim=null is no setting"):
        read("qwen3", head_dim=None)
    with pytest.raises(UserError, match=r"sliding_window is null: give it"):
        read("gemma2", sliding_window=None)


def test_text_stays_causal_beside_images():
    """Gemma 4 31B: images read themselves both ways."""
    assert read("gemma4_text", use_bidirectional_attention="vision") == read("gemma4_text")
    with pytest.raises(UserError, match=r"use_bidirectional_attention='all' is not supported"):
        read("gemma4_text", use_bidirectional_attention="all")


def test_types_of_layers_in_a_mistral_file():
    """As Transformers, which then makes a Ministral of it."""
    types = ["full_attention", "sliding_attention"] * 4
    config = read("mistral", sliding_window=4, layer_types=types)
    assert [spec.window for spec in config.layer_specs] == [None, 4] * 4
    for fields, message in [
        ({"layer_types": types[:3]}, r"layer_types=.* must be 8 of"),
        ({"layer_types": [["full_attention"]] * 8}, r"layer_types=.* must be 8 of"),
        ({"sliding_window": None, "layer_types": types}, r"sliding_window is null"),
    ]:
        with pytest.raises(UserError, match=message):
            read("mistral", **fields)
    with pytest.raises(UserError, match=r"use_sliding_window is false"):
        read("qwen3", layer_types=types)
    for turned in ([1, 1, 0], [], ["yes"] * 8):
        with pytest.raises(UserError, match=r"no_rope_layers=.* must have a 0 or 1 for each of 8"):
            read("smollm3", head_dim=8, no_rope_layers=turned)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"per_layer_config": {"x": {}}},
            r"per_layer_config has 'x': {}, not the number of a",
        ),
        ({"per_layer_config": {"5": 3}}, r"per_layer_config has '5': 3, not"),
        ({"per_layer_config": {"5": {"head_dim": "8"}}}, r"per_layer_config has '5': .*'8'"),
        ({"per_layer_config": {"5": {"bias": 8}}}, r"\['bias'\] in per_layer_config"),
        ({"num_kv_shared_layers": 8}, r"num_kv_shared_layers=8 of 8 leaves no layer"),
        ({"num_kv_shared_layers": 3}, r"num_kv_shared_layers=3 of 8 leaves no layer"),
        ({"num_experts": 8}, r"num_experts=8 is no setting of gemma4_text"),
        ({"rope_theta": 1e6}, r"rope_theta=1000000\.0 is no setting of gemma4_text"),
        ({"rope_parameters": {"rope_type": "default"}}, r"of gemma4_text must be by type of layer"),
    ],
)
def test_gemma4_files_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        read("gemma4_text", **fields)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_rope_scaling_beside_rope_parameters(kind):
    """Both are named where they differ; Transformers would drop the base of the second."""
    plain = {"rope_type": "default", "rope_theta": 1e6}
    new = {"full_attention": plain, "sliding_attention": plain} if kind != "qwen3" else plain
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    with pytest.raises(UserError, match=r"rope_scaling=.*yarn.* and rope_parameters=.*default"):
        read(kind, rope_parameters=new, rope_scaling=scaling)
    full = scaling | {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    new = {"full_attention": full, "sliding_attention": plain} if kind != "qwen3" else full
    both = read(kind, rope_parameters=new, rope_scaling=scaling)
    assert both == read(kind, rope_parameters=new)
    assert both.layer_specs[5].rotary == rotary.yarn_rope(4.0, 64, 1e6)


TRAINED = {
    "yarn": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"short_factor": [1, 1.1] * 4, "long_factor": [2, 3] * 4},
}


@pytest.mark.parametrize("rope_type", TRAINED)
@pytest.mark.parametrize(
    "at_top, given, expected", [(64, None, 64), (64, 32, 64), (None, 32, 32), (None, None, 256)]
)
def test_the_trained_length(rope_type, at_top, given, expected):
    """At the top of the file, else beside the factor, else all that the file speaks of."""
    scaling = {"rope_type": rope_type} | TRAINED[rope_type]
    fields = {"max_position_embeddings": 256, "original_max_position_embeddings": at_top}
    scaling["original_max_position_embeddings"] = given
    fields = {key: value for key, value in fields.items() if value is not None}
    encoding = read("llama", rope_scaling=scaling, **fields).pattern[0].rotary
    assert encoding.context == expected
    if rope_type == "longrope" and expected == 64:
        assert encoding.factor == 4 and encoding.scaling == pytest.approx(1.1547, abs=1e-4)


def test_dynamic_takes_the_longest_context_as_the_trained_one():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = read("llama", max_position_embeddings=256, rope_scaling=scaling)
    assert config.pattern[0].rotary == rotary.dynamic_ntk_rope(2.0, 256, 256)
    scaling["original_max_position_embeddings"] = 64
    with pytest.raises(UserError, match=r"embeddings=64 and max_position_embeddings=256"):
        read("llama", max_position_embeddings=256, rope_scaling=scaling)


@pytest.mark.parametrize(
    "kind, more, full",
    [
        ("gemma3", {}, rotary.rope(1e6)),
        ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8}}, rotary.linear_rope(8, 1e6)),
        ("gemma4", {}, rotary.p_rope(0.25, 1e6)),
    ],
)
def test_a_text_part_need_not_say_its_type(kind, more, full, tmp_path):
    text = SIZES | {"sliding_window": 4} | more
    about = {"model_type": kind, "text_config": text, "vision_config": {"hidden_size": 3}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    family, fields, wrapped = read_fields(tmp_path)
    assert wrapped and family == f"{kind}_text"
    for spec in decoder_config(family, fields).layer_specs:
        assert spec.rotary == (full if spec.window is None else rotary.rope(1e4))


@pytest.mark.parametrize("at_top, in_text, expected", [
    ({}, {}, True), ({"tie_word_embeddings": False}, {}, False),
    ({}, {"tie_word_embeddings": False}, True), ({"tie_word_embeddings": None}, {}, False),
])  # fmt: skip
def test_the_tie_of_a_wrapped_model_is_at_the_top(at_top, in_text, expected, tmp_path):
    about = {"model_type": "gemma3", "text_config": SIZES | in_text} | at_top
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert decoder_config(*read_fields(tmp_path)[:2]).tied is expected
    about["text_config"] = {"model_type": "gemma3n_text"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"text_config\.model_type='gemma3n_text' is not supported"):
        read_fields(tmp_path)


def test_proportional_counts_pairs_as_transformers():
    """int(0.58 * 100 // 2) is 28 there, and p_rope(0.58) means 29."""
    proportional = {"rope_type": "proportional", "partial_rotary_factor": 0.58}
    encoding = read("llama", head_dim=100, rope_parameters=proportional).pattern[0].rotary
    assert np.count_nonzero(encoding.inverse_frequencies(100)) == 28


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"model_type": "qwen2"},
            r"config\.json: model_type 'qwen2' is not supported\. Supp",
        ),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"rope_parameters": {"rope_type": "yarm"}}, r"rope type 'yarm'.*'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"'linear' lacks the parameter 'factor'"),
        ({"attention_bias": True}, r"attention_bias=True is not supported \(biases"),
        ({"quantization_config": {"bits": 4}}, r"quantised weights: load the unquantised"),
        ({"hidden_act": "relu"}, r"activation 'relu' is not silu"),
        (
            {"hidden_size": "32"},
            r"config\.json: hidden_size='32' must be a whole number",
        ),
        (
            {"num_hidden_layers": 0},
            r"config\.json: num_hidden_layers=0 must be a whole numb",
        ),
        ({"num_hidden_layers": 2**40}, r"num_hidden_layers=\d+ must be a whole number from 1 to"),
        ({"num_hidden_layers": None}, r"num_hidden_layers=null is no setting"),
        ({"rope_theta": "10000"}, r"config\.json: rope_theta='10000' must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps=nan must be a number above 0"),
        ({"rope_scaling": "linear"}, r"config\.json: rope_scaling='linear' must be an object"),
        ({"tie_word_embeddings": 1}, r"tie_word_embeddings=1 must be true or false"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": "4.0"}},
            r"config\.json: factor='4\.0' of rope type 'linear' must be a number",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}},
            r"rope type 'default' takes no 'mrope_section'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor=0\.5 with rope type 'linear' is not supported",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            r"rope_parameters=.* of llama must not be by type of layer",
        ),
        (
            {"rope_parameters": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
            r"config\.json: longrope: 1 factors for 8 pairs",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
            r"config\.json: linear_rope: factor=0\.5 must be at least 1",
        ),
        (
            {"num_attention_heads": 3},
            r"config\.json: heads=3 .*\(num_attention_heads and num_k",
        ),
        ({"head_dim": 7}, r"config\.json: head_dim=7 cannot be split into pairs"),
        ({"sliding_window": 4}, r"sliding_window=4 is no setting of llama that is understood"),
        ({"residual_multiplier": 0.2}, r"residual_multiplier=0\.2 is no setting of llama"),
        ({"is_causal": False}, r"is_causal=false is not supported"),
        ({"rope_interleaved": True}, r"rope_interleaved=True is not supported"),
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
        (
            {"model__embed_tokens__weight": None},
            r"one tensor named \.\.\.embed_tokens\.weight is",
        ),
        ({"model__norm__weight": np.ones(32, np.int8)}, r"'model\.norm\.weight' is of type int8"),
        ({"a__lora_A__weight": np.ones(1, np.float32)}, r"of a LoRA adapter: merge it"),
        ({"tok_embeddings__weight": np.ones(1, np.float32)}, r"of Mistral's or Meta's own format"),
        ({"model__norm__scales": np.ones(1, np.float32)}, r"quantised by MLX"),
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


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"])
def test_pickle_is_refused(folder, start):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(start + bytes(100))
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"pytorch_model\.bin.*pickle files are refused"):
            checkpoints.load(path)


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"no run at .*absent, nor any.*; give the folder"):
        checkpoints.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"at google/gemma-2b, nor .*nothing is downloaded"):
        checkpoints.load("google/gemma-2b")
    for path in (None, 3, ""):
        with pytest.raises(UserError, match=r"must be a text or a path|is no path: give that of"):
            checkpoints.load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .*config\.json and \*\.safetensors"):
        checkpoints.load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"holds none of tokenizer\.model"):
        checkpoints.load_tokenizer(folder)
    for content in ("{", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            checkpoints.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is damaged \(a list, no object"):
        checkpoints.load(folder)


def test_another_output_table_than_the_tied_one_is_refused(tmp_path):
    params = make(TINY)
    checkpoints.export(Decoder(TINY), params, tmp_path / "gemma")
    other = np.array(params["embedding"])
    other[-1, -1] += 1e-3
    change_tensors(tmp_path / "gemma", lm_head__weight=other)
    with pytest.raises(UserError, match=r"lm_head\.weight' differs from .* tie_word_embeddings of"):
        checkpoints.load(tmp_path / "gemma")
    change_config(tmp_path / "gemma", tie_word_embeddings=False)
    np.testing.assert_array_equal(checkpoints.load(tmp_path / "gemma")[1]["unembedding"], other)


@pytest.mark.parametrize("first, second, expected", [
    ("bfloat16", "float32", "float32"), ("float32", "bfloat16", "float32"),
    ("float16", "bfloat16", "float32"), ("bfloat16", "bfloat16", "bfloat16"),
    ("float64", "float32", "float32"),
])  # fmt: skip
def test_a_stack_has_the_type_that_holds_all_of_its_layers(first, second, expected, folder):
    ups = np.asarray(make(LLAMA)["pattern_0"]["up"])
    stored = {i: ups[i].T.astype(jnp.dtype(t)) for i, t in enumerate((first, second))}
    change_tensors(
        folder, **{f"model__layers__{i}__mlp__up_proj__weight": a for i, a in stored.items()}
    )
    up = checkpoints.load(folder)[1]["pattern_0"]["up"]
    assert up.dtype == expected
    for i, array in stored.items():
        np.testing.assert_array_equal(np.asarray(up[i], np.float32), array.T.astype(np.float32))


def test_a_value_that_a_type_cannot_hold_is_refused(folder):
    big = np.full((64, 32), 1e5, np.float32)
    change_tensors(folder, model__layers__1__mlp__up_proj__weight=big)
    with pytest.raises(UserError, match=r"up_proj.weight has values up to 1e\+05, beyond float16"):
        checkpoints.load(folder, dtype="float16")
    big = np.full((64, 32), 1e300)
    change_tensors(folder, model__layers__1__mlp__up_proj__weight=big)
    with pytest.raises(UserError, match=r"values up to 1e\+300, beyond float32"):
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


@pytest.mark.parametrize(
    "name", ["linear_rope(factor=4, partial=0.5)", "yarn_rope(4, 64, partial=0.5)"]
)
def test_encodings_of_a_part_of_the_dimensions_are_not_exported(name, tmp_path):
    """Transformers loads such a file, and fails at the first forward."""
    config = TINY.with_rotary(rotary.parse(name))
    with pytest.raises(UserError, match=r"a part of the dimensions turns, which models of these"):
        checkpoints.export(Decoder(config), make(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dynamic_is_exported_with_its_trained_length(tmp_path):
    config = TINY.with_rotary(rotary.dynamic_ntk_rope(2.0, 64, 64))
    checkpoints.export(Decoder(config), make(config), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["max_position_embeddings"] == 64
    assert checkpoints.load(tmp_path / "out")[0].config.pattern == config.pattern
    longer = TINY.with_rotary(rotary.dynamic_ntk_rope(2.0, 64, 128))
    with pytest.raises(UserError, match=r"cannot be exported"):
        checkpoints.export(Decoder(longer), make(longer), tmp_path / "longer")


def test_p_rope_is_exported_with_as_many_pairs(tmp_path):
    """By a fraction that Transformers' own count does not round away."""
    config = dataclasses.replace(TINY, head_dim=100).with_rotary(rotary.p_rope(0.58))
    checkpoints.export(Decoder(config), make(config), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert int(fields["rope_parameters"]["partial_rotary_factor"] * 100 // 2) == 29


def test_an_export_is_read_back_before_it_is_there(tmp_path, monkeypatch):
    """A tensor that arrives otherwise on disk is noticed, and nothing is left."""
    module = sys.modules["rope_study.checkpoints.hugging_face.export"]  # not the function
    write = module._write_tensors

    def damaging(folder, params, shards):
        write(folder, params, shards)
        norm = np.asarray(make(LLAMA)["final_norm"]) + 1
        change_tensors(folder, model__norm__weight=norm)

    monkeypatch.setattr(module, "_write_tensors", damaging)
    with pytest.raises(UserError, match=r"tensor 'model\.norm\.weight' differs from what was exp"):
        checkpoints.export(Decoder(LLAMA), make(LLAMA), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_says_the_widest_type_and_finds_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), make(LLAMA))
    params["unembedding"] = make(LLAMA)["unembedding"]
    checkpoints.export(Decoder(LLAMA), params, "~/out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load("~/out")[1], params)


def test_an_export_carries_its_tokenizer(tmp_path):
    checkpoints.export(Decoder(TINY), make(TINY), tmp_path / "out", tokenizer=data.ByteTokenizer())
    decoder, params = checkpoints.load(tmp_path / "out")
    tokenizer = checkpoints.load_tokenizer(tmp_path / "out")
    assert (decoder.config.bos, tokenizer.bos) == (256, 256)
    (text,) = generate(decoder, params, tokenizer, ["To be"], tokens=2)
    assert text.startswith("To be")
    with pytest.raises(UserError, match=r"tokenizer 'bytes' has 257 tokens and the model 64 rows"):
        config = dataclasses.replace(TINY, vocab_size=64)
        checkpoints.export(Decoder(config), {}, tmp_path / "no", tokenizer=data.ByteTokenizer())


def test_parameters_of_another_decoder_are_not_exported(tmp_path):
    params = make(LLAMA)
    for wrong, message in [
        (
            params | {"final_norm": params["final_norm"][:3]},
            r"'final_norm' is \(3,\) and",
        ),
        ({k: v for k, v in params.items() if k != "unembedding"}, r"'unembedding' is missing"),
        (params | {"more": params["final_norm"]}, r"'more' is \(32,\) .* not there"),
    ]:
        with pytest.raises(UserError, match=message):
            checkpoints.export(Decoder(LLAMA), wrong, tmp_path / "out")
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
        ({"tokens": np.full((1, 2), 384)}, r"ids from 384 to 384, not 0\.\.383"),
        (
            {"tokens": np.ones((1, 2), int), "logits": np.ones(2)},
            r"logits is \(1, 2, 384\) here and \(2,\) in golden",
        ),
    ],
)
def test_wrong_golden_values_are_refused(golden, message):
    with pytest.raises(UserError, match=message):
        checkpoints.compare(Decoder(LLAMA), make(LLAMA), golden)
