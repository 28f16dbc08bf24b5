"""Variants and patterns by name, in the configuration, in model.json and at evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import rotary
from rope_study.checkpoints import runs
from rope_study.data import load_tokenizer
from rope_study.decoder import (
    Decoder,
    LayerSpec,
    attention_scores,
    layer_patterns,
    norms,
    presets,
    query_scaling,
    variants,
)
from rope_study.errors import UserError
from rope_study.training import settings

TINY = presets.tiny()


def test_a_variant_changes_what_it_names_in_all_layers():
    name, config = variants.apply(TINY, "nope + alibi() + ss_max(start=0.43)")
    assert name == "nope() + ss_max(start=0.43) + alibi()"
    spec = LayerSpec(
        rotary.nope(),
        query_scale=query_scaling.SSMax(0.43),
        score_function=attention_scores.Alibi(),
    )
    assert config.pattern == (spec,)
    assert variants.apply(TINY, name) == (name, config)  # canonical names read back
    assert variants.name_of(spec) == name
    assert variants.apply(config, "rope")[1].pattern[0].score_function == attention_scores.Alibi()


def test_a_pattern_comes_first_and_the_rest_changes_its_layers():
    name, config = variants.apply(TINY, "ss_max() + gemma3(window=64)")
    assert name == "gemma3(window=64) + ss_max(start=1)"
    assert [spec.window for spec in config.pattern] == [64] * 5 + [None]
    assert {spec.query_scale for spec in config.pattern} == {query_scaling.SSMax()}


MINE = """
import dataclasses, functools
import numpy as np
from rope_study import rotary

class Speed:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, x, positions):
        return rotary.rope()(x, positions // self.factor)

def slower(x, positions, factor=2):
    return Speed(factor)(x, positions)

fast, slow = Speed(1), Speed(3)
partial = functools.partial(slower, factor=3)
from_lambda = lambda x, positions: slower(x, positions, 3)

short = lambda x, positions: x[..., :-1]
bf16 = lambda x, positions: x.astype("bfloat16")
nothing = lambda x, positions: None
def one(x): return x
def fails(x, positions): raise RuntimeError("over\\ntwo lines")
def numpy(x, positions): return np.sin(x)
def only_queries(x, positions): return x + np.zeros((4, 1), "f")

@dataclasses.dataclass(frozen=True)
class Long(rotary.Encoding):
    kind = "long"
    def inverse_frequencies(self, head_dim):
        return np.full(head_dim, 1.0)
@dataclasses.dataclass(frozen=True)
class NoNumber(rotary.Encoding):
    kind = "no_number"
    def inverse_frequencies(self, head_dim):
        return np.full(head_dim // 2, np.nan)
"""


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory):
    """A user's module, my_rotary, and one that takes a function from it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_rotary.py").write_text(MINE)
    (folder / "my_study.py").write_text("from my_rotary import slower")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def test_an_encoding_object_or_function_is_a_variant():
    assert variants.apply(TINY, rotary.nope()) == ("nope()", TINY.with_rotary(rotary.nope()))
    name, config = variants.apply(TINY, "my_study:slower + log_n()")
    assert name == "my_rotary:slower + log_n()"  # where it is defined
    assert config.pattern[0].rotary.__module__ == "my_rotary"


@pytest.mark.parametrize("name", ["fast", "slow", "partial", "from_lambda"])
def test_what_does_not_know_its_name_is_named_by_where_it_lies(name):
    """Two objects of one class are two encodings, and each is found again."""
    canonical, config = variants.apply(TINY, f"my_rotary:{name}")
    assert canonical == f"my_rotary:{name}"
    assert variants.apply(TINY, canonical)[1] == config
    rotary.check_named(config.pattern[0].rotary)
    x, positions = np.ones((1, 8, 1, 16), "f"), np.arange(8)[None]
    factor = 1 if name == "fast" else 3
    expected = rotary.rope()(x, positions // factor)
    np.testing.assert_array_equal(config.pattern[0].rotary(x, positions), expected)


def test_what_cannot_be_found_again_is_not_trained():
    with pytest.raises(UserError, match=r"cannot be found again by its name.*'module:name'"):
        rotary.check_named(lambda x, positions: x)


@pytest.mark.parametrize(
    "name, message",
    [
        ("short", r"makes float32\[1, 2, 4, 15\] of float32\[1, 2, 4, 16\]: it has to keep"),
        ("bf16", r"makes bfloat16\[1, 2, 4, 16\] of float32"),
        ("nothing", "makes NoneType of"),
        ("one", "TypeError: one\\(\\) takes 1 positional argument but 2 were given$"),
        ("fails", "fails on .*: RuntimeError: over$"),
        ("numpy", "fails on .*: TracerArrayConversionError: .*"),
        ("only_queries", r"fails on x=float32\[1, 2, 2, 16\]"),  # 4 heads of queries, 2 of keys
        ("Long", r"inverse_frequencies\(16\) must be 8 finite numbers"),
        ("NoNumber", r"inverse_frequencies\(16\) must be 8 finite numbers"),
    ],
)
def test_an_encoding_that_cannot_be_trained_is_refused_by_name(name, message):
    with pytest.raises(UserError, match=message) as caught:
        variants.apply(TINY, f"my_rotary:{name}", "encodings")
    assert f"encoding my_rotary:{name}" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.argument == "encodings"


@pytest.mark.parametrize("field", variants.REGISTRIES)
def test_every_name_reads_back(field):
    for name, maker in variants.REGISTRIES[field].items():
        text = name if field == "pattern" else maker.example(16).name
        canonical, config = variants.apply(TINY, text)
        assert variants.apply(TINY, canonical) == (canonical, config)
        if field != "pattern":
            component = maker.example(16)
            assert {getattr(spec, field) for spec in config.pattern} == {component}


def test_a_pattern_is_named_by_what_is_not_its_default():
    for text in (
        "gemma3(64)",
        "gemma3( window = 64 )",
        "gemma3(window=64, local_rotary='rope(theta=10_000)')",
    ):
        assert variants.apply(TINY, text)[0] == "gemma3(window=64)"


@pytest.mark.parametrize(
    "variant, message",
    [
        ("nope + alibbi()", r"unknown encoding 'alibbi'.*'alibi'"),
        ("rope + nope", r"two terms for rotary: rope\(theta=10000\) and nope\(\)"),
        ("t5_bias(bucket=8)", r"no parameter 'bucket'.*'buckets'"),
        ("t5_bias(buckets='a')", r"buckets='a' must be a whole number"),
        ("t5_bias(buckets=64, max_distance=8)", r"max_distance=8 above half"),
        ("gemma3(window=0)", r"window=0 must be at least 1"),
        ("log_n(train_length=1)", r"train_length=1 must be at least 2"),
        ("rope +", "unknown encoding 'rope \\+'|not understood"),
    ],
)
def test_wrong_variants_are_refused(variant, message):
    with pytest.raises(UserError, match=message):
        variants.apply(TINY, variant)


# --- patterns ---------------------------------------------------------------------------------


def layers(pattern):
    """(rotates, window, chunk) of each layer."""
    still = rotary.nope()
    return [(spec.rotary != still, spec.window, spec.chunk) for spec in pattern]


def test_patterns_place_local_and_global_layers():
    assert layers(layer_patterns.gemma2()) == [(True, 4096, None), (True, None, None)]
    assert layers(layer_patterns.gemma3(window=512)) == [(True, 512, None)] * 5 + [
        (True, None, None)
    ]
    assert layers(layer_patterns.irope()) == [(True, None, 8192)] * 3 + [(False, None, None)]
    assert layers(layer_patterns.smollm3()) == [(True, None, None)] * 3 + [(False, None, None)]
    assert layers(layer_patterns.rnope_swa()) == [(True, 4096, None)] * 3 + [(False, None, None)]


def test_patterns_have_their_bases_and_parts():
    local, *_, far = layer_patterns.gemma3()
    assert (local.rotary, far.rotary) == (rotary.rope(10_000), rotary.rope(1_000_000))
    assert local.qk_norm == far.qk_norm == norms.QKNorm()
    local, *_, far = layer_patterns.gemma4()
    assert (local.rotary, far.rotary) == (rotary.rope(10_000), rotary.p_rope(0.25, 1_000_000))
    assert local.query_scale == far.query_scale == query_scaling.LogitScale(1.0)
    assert {spec.score_function for spec in layer_patterns.gemma2()} == {
        attention_scores.SoftCap(50.0)
    }
    local, *_, far = layer_patterns.irope()
    assert (local.qk_norm, local.query_scale) == (norms.QKNormFixed(), None)
    assert (far.qk_norm, far.query_scale) == (None, query_scaling.Llama4Temperature())


def test_scan_equals_unrolled_where_layers_have_different_arrays():
    """Five layers: one repeat of four and one left over; T5's table is shared by all of them."""
    _, config = variants.apply(TINY, "irope(chunk=8, floor=4) + t5_bias()")
    config = dataclasses.replace(config, layers=5)
    variables = {"params": random_parameters(config)}
    tokens = jax.random.randint(jax.random.key(7), (1, 20), 0, 256)
    scanned, unrolled = (
        jax.jit(Decoder(dataclasses.replace(config, scan=scan)).apply)(variables, tokens)[0]
        for scan in (True, False)
    )
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)


# --- configuration ----------------------------------------------------------------------------


def decoder_of(**model):
    """The decoder that a configuration with these fields of config.model describes."""
    config = settings.default()
    config.model.preset = "tiny"
    config.model.update(model)
    return settings.decoder_config(config.model, 256)


def test_settings_set_the_pattern_and_the_components():
    decoder = decoder_of(
        pattern="gemma3(window=8)", query_scale="log_n()", score_function="alibi()"
    )
    expected = [
        dataclasses.replace(
            spec, query_scale=query_scaling.LogN(), score_function=attention_scores.Alibi()
        )
        for spec in layer_patterns.gemma3(window=8)
    ]
    assert decoder.pattern == tuple(expected)
    assert decoder_of().pattern == (LayerSpec(),)


@pytest.mark.parametrize(
    "model, message, argument",
    [
        ({"score_function": "alibbi()"}, r"unknown score function 'alibbi'.*'alibi'", None),
        ({"query_scale": "alibi()"}, r"unknown query scale 'alibi'", None),
        ({"pattern": "gemma_3()"}, r"unknown layer pattern 'gemma_3'.*'gemma3'", None),
        ({"pattern": "gemma3()", "rotary": "nope"}, r"both choose the encoding", "pattern"),
        ({"rotary": "p_rope(2)"}, r"p=2 must lie in \[0, 1\]", "rotary"),
    ],
)
def test_wrong_settings_are_refused(model, message, argument):
    """The error knows what to change: the field itself where nothing else is said."""
    with pytest.raises(UserError, match=message) as error:
        decoder_of(**model)
    assert error.value.argument == (argument or next(iter(model)))


# --- model.json and evaluation ----------------------------------------------------------------


def test_model_json_reads_back(tmp_path):
    _, config = variants.apply(TINY, "irope(chunk=8) + t5_bias(buckets=8)")
    config = dataclasses.replace(config, layers=4)
    runs.write_model(tmp_path, config, load_tokenizer("bytes"))
    assert runs.read_model(tmp_path) == config


def save(folder, config):
    """A run with one checkpoint of initial weights."""
    params = random_parameters(config)
    runs.write_model(folder, config, load_tokenizer("bytes"))
    (folder / "checkpoints").mkdir()
    with runs.Manager(folder) as manager:
        manager.save(1, {runs.PARAMS: params})
    return params


def test_a_trained_model_is_loaded_with_another_encoding(tmp_path):
    """One argument: p-RoPE in place of RoPE, with a scale that needs no training."""
    params = save(tmp_path, TINY)
    decoder, loaded = runs.load(tmp_path, rotary="p_rope(p=0.5) + log_n(train_length=16)")
    spec = LayerSpec(rotary.p_rope(0.5), query_scale=query_scaling.LogN(16))
    assert decoder.config.pattern == (spec,)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(UserError, match=r"needs .*ss_max_scale.* did not train"):
        runs.load(tmp_path, rotary="rope + ss_max()")


def test_arrays_of_the_encoding_that_was_replaced_are_left_out(tmp_path):
    _, config = variants.apply(TINY, "nope + t5_bias()")
    params = save(tmp_path, config)
    decoder, loaded = runs.load(tmp_path, rotary="alibi()")
    assert rotary.name_of(decoder.config.pattern[0].rotary) == "nope()"
    assert set(loaded) == set(params) - {"shared"}
    decoder.apply({"params": loaded}, jnp.arange(4)[None])
