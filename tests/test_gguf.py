"""GGUF files without Transformers: what comes back, and everything that is refused.

That the mathematics is the peers' is shown in tests/parity.
"""

import dataclasses
import json

import gguf
import gguf_files
import jax
import numpy as np
import pytest
import safetensors.numpy
from random_parameters import random_parameters

from rope_study import checkpoints, data, rotary
from rope_study.checkpoints.gguf import open_checkpoint
from rope_study.checkpoints.weight_map import parameter_at
from rope_study.decoder import Decoder, presets, variants
from rope_study.errors import UserError

TINY = dataclasses.replace(presets.tiny(), vocab_size=96, d_model=32, head_dim=16, mlp_hidden=64)
LLAMA = dataclasses.replace(
    TINY, norm_offset=0.0, activation="silu", scale_embedding=False, tied=False
)
GEMMA3 = dataclasses.replace(
    variants.apply(TINY, "gemma3(window=8)")[1], post_norms=True, layers=8, bos=2
)
GEMMA2 = dataclasses.replace(
    variants.apply(TINY, "gemma2(window=8)")[1], post_norms=True, final_cap=30.0, bos=2
)
CONFIGS = {"llama": LLAMA, "gemma": dataclasses.replace(TINY, bos=2), "gemma3": GEMMA3}


def make(folder, config, quantisation="F32", **changes):
    """(path of a GGUF file, its parameters): written by way of Transformers' names."""
    params = random_parameters(config)
    checkpoints.export(Decoder(config), params, folder / "peer")
    fields = json.loads((folder / "peer" / "config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "peer" / "model.safetensors")
    path = folder / "gguf" / f"tiny-{quantisation}.gguf"
    path.parent.mkdir()
    gguf_files.convert(path, fields, tensors, quantisation, **changes)
    return path, params


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_written_is_loaded(name, tmp_path):
    """With q and k in the order of this project, and norms without what the file adds."""
    config = dataclasses.replace(CONFIGS[name], trained_length=300)
    path, params = make(tmp_path, config)
    decoder, loaded = checkpoints.load(path.parent)
    expected = dataclasses.replace(config, source="tiny, F32")
    assert decoder.config == expected
    for where, array in jax.tree_util.tree_leaves_with_path(loaded):
        written = parameter_at(params, [key.key for key in where])
        tolerance = 2e-7 if "norm" in where[-1].key else 0  # 1 + w - 1
        np.testing.assert_allclose(array, written, rtol=0, atol=tolerance, err_msg=str(where))


def test_a_llama_is_permuted_in_its_file(tmp_path):
    """Else the test above would hold for files that nobody writes."""
    path, params = make(tmp_path, LLAMA)
    stored = {t.name: t.data for t in gguf.GGUFReader(path).tensors}["blk.0.attn_q.weight"]
    ours = np.asarray(parameter_at(params, ["pattern_0", "q"]))[0]  # [D, N, H]
    half = ours.shape[-1] // 2
    head = stored.reshape(ours.shape[1], 2 * half, -1)[1]  # [H, D]
    np.testing.assert_array_equal(head[0], ours[:, 1, 0])
    np.testing.assert_array_equal(head[1], ours[:, 1, half])
    np.testing.assert_array_equal(head[2], ours[:, 1, 1])


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_quantised_tensors_are_what_the_package_makes_of_them(quantisation, tmp_path):
    path, params = make(tmp_path, LLAMA, quantisation)
    decoder, loaded = checkpoints.load(path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, key in (("blk.1.ffn_down.weight", "down"), ("blk.1.attn_v.weight", "v")):
        tensor = tensors[name]
        assert tensor.tensor_type.name == quantisation
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).T
        array = np.asarray(loaded["pattern_0"][key])[1]
        np.testing.assert_array_equal(array.reshape(expected.shape), expected)
        rounding = np.abs(
            expected - np.asarray(params["pattern_0"][key])[1].reshape(expected.shape)
        )
        assert 0 < rounding.max() < 0.2 * np.abs(expected).max()
    assert decoder.config.source == f"tiny, {quantisation}"
    assert variants.describe(decoder.config).startswith(f"tiny, {quantisation}, 2 layers")


@pytest.mark.parametrize("index", [(slice(3, 9),), (slice(0, 4), slice(8, 40))])
def test_a_part_is_the_part_of_the_whole(index, tmp_path):
    """As where tensors are split over devices."""
    path, _ = make(tmp_path, LLAMA, "Q4_1")
    reader = open_checkpoint(path).reader
    for name in ("blk.0.ffn_down.weight", "token_embd.weight"):
        tensor = reader.read(name)
        assert tensor.shape == reader.shape(name) and tensor.dtype == reader.dtype(name)
        np.testing.assert_array_equal(reader.read(name, index), tensor[index])


def test_parameters_are_f32_or_as_asked(tmp_path):
    path, _ = make(tmp_path, LLAMA, "Q8_0")
    assert {leaf.dtype for leaf in jax.tree.leaves(checkpoints.load(path)[1])} == {
        np.dtype("float32")
    }
    _, narrow = checkpoints.load(path, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(narrow)} == {"bfloat16"}


# --- metadata ---------------------------------------------------------------------------------


def loaded_config(path):
    return checkpoints.load(path)[0].config


def test_factors_of_llama3_are_recognised(tmp_path):
    encoding = rotary.llama3_rope(factor=32.0, context=8192, theta=5e5)
    plain = rotary.rope(5e5).inverse_frequencies(16)
    factors = (plain / encoding.inverse_frequencies(16)).astype(np.float32)
    add = lambda stored: stored | {"rope_freqs.weight": factors}  # noqa: E731
    path, _ = make(tmp_path, LLAMA, metadata={"rope.freq_base": 5e5}, changes=add)
    assert loaded_config(path).pattern[0].rotary == encoding


def test_other_factors_are_refused(tmp_path):
    add = lambda stored: stored | {"rope_freqs.weight": np.full(8, 3, np.float32)}  # noqa: E731
    path, _ = make(tmp_path, LLAMA, changes=add)
    with pytest.raises(UserError, match=r"tiny-F32\.gguf.*'rope_freqs\.weight'"):
        checkpoints.load(path)


def test_rope_scaling_and_windows_are_read(tmp_path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path, _ = make(tmp_path, LLAMA, metadata=scaling | {"attention.sliding_window": 5})
    (spec,) = loaded_config(path).pattern
    assert spec.rotary == rotary.linear_rope(4, 1e4) and spec.window == 5


@pytest.mark.parametrize(
    "pattern, windows", [(None, 5 * [8] + [None, 8, 8]), ([True, False] * 4, [8, None] * 4)]
)
def test_local_layers_of_gemma3(pattern, windows, tmp_path):
    path, _ = make(tmp_path, GEMMA3, metadata={"attention.sliding_window_pattern": pattern})
    assert [spec.window for spec in loaded_config(path).layer_specs] == windows


@pytest.mark.parametrize("rope_type, factor", [(None, 2.0), ("linear", 2.0), ("none", None)])
def test_positions_that_are_divided(rope_type, factor, tmp_path):
    """A factor alone is "linear", and beside "none" it is not read, as in llama.cpp."""
    metadata = {
        "rope.scaling.type": rope_type,
        "rope.scaling.factor": 2.0,
        "attention.causal": True,
    }
    path, _ = make(tmp_path, LLAMA, metadata=metadata)
    assert getattr(loaded_config(path).pattern[0].rotary, "factor", None) == factor


@pytest.mark.parametrize("said, expected", [(None, 50.0), (0.0, None), (20.0, 20.0)])
def test_caps_of_gemma2(said, expected, tmp_path):
    """The family's where the file says none, as in llama.cpp; 0 is none."""
    path, _ = make(tmp_path, GEMMA2, metadata={"attn_logit_softcapping": said})
    cap = loaded_config(path).pattern[0].score_function
    assert (cap and cap.cap) == expected


def test_the_largest_gemma3_scales_by_its_width(tmp_path):
    """62 layers is how llama.cpp too tells it."""
    path, _ = make(tmp_path, dataclasses.replace(GEMMA3, layers=62))
    config = checkpoints.load(path)[0].config
    assert config.pattern[0].query_scale.factor == (config.d_model // config.heads) ** -0.5


@pytest.mark.parametrize(
    "metadata, match",
    [
        ({"expert_count": 8}, "expert_count=8"),
        ({"rope.dimension_count": 8}, "rope.dimension_count=8"),
        ({"attention.value_length": 8}, "attention.value_length=8"),
        ({"rope.scaling.type": "longrope"}, "longrope"),
        ({"block_count": None}, "has no llama.block_count"),
        ({"feed_forward_length": [64, 64]}, "one number is expected"),
        ({"logit_scale": 0.5}, "logit_scale=0.5"),
        ({"attention.scale": 0.5}, r"llama\.attention\.scale=0\.5 is no setting of 'llama'"),
        ({"attention.scale": -0.5}, r"attention\.scale=-0\.5 is no setting"),
        ({"attention.causal": False}, r"attention\.causal=False is no setting of 'llama'"),
        ({"attention.head_count": 0}, r"head_count=0 must be at least 1"),
        ({"vocab_size": 95}, r"llama\.vocab_size=95, and tensor 'token_embd\.weight' has 96 rows"),
        ({"rope.scaling.type": "yarn"}, r"type='yarn' with {} is not supported"),
        ({"rope.scaling.factor": "2"}, r"factor='2' of rope type 'linear' must be a number"),
        ({"block_count": 0}, "num_hidden_layers=0 must be a whole number"),
        ({"rope.freq_base": -1.0}, r"rope_theta=-1\.0 must be a number above 0"),
    ],
)
def test_settings_that_the_decoder_lacks_are_refused(metadata, match, tmp_path):
    path, _ = make(tmp_path, LLAMA, metadata=metadata)
    with pytest.raises(UserError, match=match) as error:
        checkpoints.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name, match", [("qwen2", "biases"), ("mamba", "not supported")])
def test_other_architectures_are_refused(name, match, tmp_path):
    gguf_files.write(tmp_path / "m.gguf", name, {}, {})
    with pytest.raises(UserError, match=match):
        checkpoints.load(tmp_path / "m.gguf")


# --- damage -----------------------------------------------------------------------------------


def test_missing_and_extra_tensors_are_named(tmp_path):
    def drop(stored):
        return {name: array for name, array in stored.items() if name != "blk.1.attn_k.weight"}

    def add(stored):
        return stored | {"blk.0.attn_q.bias": np.zeros(32, np.float32)}

    for i, (change, name) in enumerate(((drop, "blk.1.attn_k.weight"), (add, "attn_q.bias"))):
        (tmp_path / str(i)).mkdir()
        path, _ = make(tmp_path / str(i), LLAMA, changes=change)
        with pytest.raises(UserError, match=name) as error:
            checkpoints.load(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "size, match", [(-100, "tensor 'output"), (300, "cut off"), (0, "cut off")]
)
def test_files_that_are_cut_off(size, match, tmp_path):
    path, _ = make(tmp_path, LLAMA)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match=match) as error:
        checkpoints.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"no model" * 100)
    with pytest.raises(UserError, match="no GGUF file"):
        checkpoints.load(tmp_path / "m.gguf")
    (tmp_path / "n.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.gguf, n\.gguf"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("number, match", [(999, "999"), (24, "I8")])
def test_quantisations_that_are_not_read(number, match, tmp_path):
    """An unknown one, and one that the package knows and does not dequantise."""
    path, _ = make(tmp_path, LLAMA)
    content = bytearray(path.read_bytes())
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8  # the number of axes, and two of them
    content[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"'blk.0.ffn_up.weight'.*{match}"):
        checkpoints.load(path)


def test_numbers_that_are_no_numbers(tmp_path):
    def spoil(stored):
        return stored | {"blk.0.ffn_norm.weight": np.full(32, np.nan, np.float32)}

    path, _ = make(tmp_path, LLAMA, changes=spoil)
    with pytest.raises(UserError, match=r"'blk\.0\.ffn_norm\.weight' has infinities or NaN"):
        checkpoints.load(path)


# --- tokenizers -------------------------------------------------------------------------------

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "ab", "▁a", "▁ab", "<think>"]
SPIECE = {
    "model": "llama", "tokens": PIECES,
    "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0, 0.0],
    "token_type": [2, 3, 3] + [6] * 256 + [1] * 6 + [4], "bos_token_id": 1, "eos_token_id": 2,
    "unknown_token_id": 0,
}  # fmt: skip
LETTERS = [chr(byte) for byte in range(0x21, 0x7F)] + ["Ġ", "Ċ", "Ã", "©"]
MERGES = ["Ġ 1", "1 2", "a b", "Ġ ab"]
BYTE_LEVEL = {
    "model": "gpt2", "pre": "gpt-2", "tokens": ["<|end|>", *LETTERS, "Ġ1", "12", "ab", "Ġab"],
    "token_type": [3] + [1] * 102, "merges": MERGES, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def tokenizer_of(folder, **changes):
    fields = {key: value for key, value in changes.items() if value is not None}
    gguf_files.write(folder / "t.gguf", "llama", {}, {}, tokenizer=fields)
    return checkpoints.load_tokenizer(folder / "t.gguf")


def test_pieces_with_scores(tmp_path):
    tokenizer = tokenizer_of(tmp_path, **SPIECE)
    encode = lambda text: [PIECES[i] for i in tokenizer.encode(text)]  # noqa: E731
    assert encode("ab ab") == ["▁ab", "▁ab"]  # a space is put in front
    assert encode("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert encode("<think>a") == ["<think>", "▁a"]
    assert tokenizer.bos == 1 and tokenizer.vocab_size == len(PIECES)
    assert tokenizer.decode(tokenizer.encode("ab éa\nb").tolist()) == "ab éa\nb"


def test_no_space_is_put_in_front_where_the_file_says_so(tmp_path):
    tokenizer = tokenizer_of(tmp_path, **SPIECE, add_space_prefix=False, add_bos_token=False)
    assert [PIECES[i] for i in tokenizer.encode("ab ab")] == ["ab", "▁ab"]
    assert tokenizer.bos is None


@pytest.mark.parametrize(
    "pre, pieces",
    [
        ("gpt-2", ["ab", "Ġ", "Ġ1", "2"]),  # blanks but the last, then a number with its blank
        ("smollm", ["ab", "Ġ", "Ġ", "1", "2"]),  # digits alone
        ("llama-bpe", ["ab", "Ġ", "Ġ", "12"]),  # up to three digits, without a blank
        ("qwen2", ["ab", "Ġ", "Ġ", "1", "2"]),
    ],
)
def test_text_is_split_as_the_file_names_it(pre, pieces, tmp_path):
    tokenizer = tokenizer_of(tmp_path, **(BYTE_LEVEL | {"pre": pre}))
    tokens = BYTE_LEVEL["tokens"]
    assert [tokens[i] for i in tokenizer.encode("ab  12")] == pieces
    assert tokenizer.encode("<|end|>").tolist() == [0]
    assert tokenizer.bos == (0 if pre == "llama-bpe" else None)  # nothing is said
    assert tokenizer.decode(tokenizer.encode("ab é\n12").tolist()) == "ab é\n12"


def test_bos_is_as_the_file_says(tmp_path):
    assert tokenizer_of(tmp_path, **BYTE_LEVEL, add_bos_token=True).bos == 0
    llama3 = BYTE_LEVEL | {"pre": "llama-bpe"}
    assert tokenizer_of(tmp_path, **llama3, add_bos_token=False).bos is None


@pytest.mark.parametrize("fields", [SPIECE, BYTE_LEVEL])
def test_saved_it_is_the_same(fields, tmp_path):
    tokenizer = tokenizer_of(tmp_path, **fields)
    (tmp_path / "run").mkdir()
    name = tokenizer.save(tmp_path / "run")
    reloaded = data.load_tokenizer(tmp_path / "run" / name)
    assert reloaded.fingerprint == tokenizer.fingerprint and reloaded.bos == tokenizer.bos
    text = "ab 12 é <|end|><think>"
    np.testing.assert_array_equal(reloaded.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
    "fields, match",
    [
        (BYTE_LEVEL | {"pre": "gpt-3"}, "pre='gpt-3' is not supported.*gpt-2"),
        (SPIECE | {"model": "t5"}, "'t5' is not supported"),
        (SPIECE | {"scores": None}, "has no tokenizer.ggml.scores"),
        (SPIECE | {"tokens": None}, "has no tokenizer.ggml.tokens"),
        (SPIECE | {"model": ["llama"]}, r"\['llama'\] is not supported"),
        (BYTE_LEVEL | {"merges": ["x y"]}, "does not fit together"),
        (BYTE_LEVEL | {"merges": ["ab"]}, "does not fit together"),
    ],
)
def test_tokenizers_that_are_refused(fields, match, tmp_path):
    with pytest.raises(UserError, match=match) as error:
        tokenizer_of(tmp_path, **fields)
    assert "t.gguf" in str(error.value) and "\n" not in str(error.value)


def test_text_of_the_metadata_that_is_not_utf8(tmp_path):
    tokenizer_of(tmp_path, **SPIECE)
    file = tmp_path / "t.gguf"
    file.write_bytes(file.read_bytes().replace(b"<0xA9>", b"<0x\xff9>"))
    with pytest.raises(UserError, match=r"t.gguf is damaged: tokenizer.ggml.tokens is not UTF-8"):
        data.load_tokenizer(file)
