"""Variants and patterns by name, in the configuration, in model.json and at evaluation."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import ENCODINGS

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
from rope_study.training import run_folder, settings

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
    assert variants.apply(config, "rope")[1].pattern[0].logits == attention_scores.Alibi()


def test_a_pattern_comes_first_and_the_rest_changes_its_layers():
    name, config = variants.apply(TINY, "ss_max() + gemma3(window=64)")
    assert name == "gemma3(window=64) + ss_max(start=1)"
    assert [spec.window for spec in config.pattern] == [64] * 5 + [None]
    assert {spec.query_scale for spec in config.pattern} == {query_scaling.SSMax()}


def test_an_encoding_object_or_function_is_a_variant():
    assert variants.apply(TINY, rotary.nope()) == ("nope()", TINY.with_rotary(rotary.nope()))
    name, config = variants.apply(TINY, "rope_study.rotary:pairs + log_n()")
    assert name == "rope_study.rotary:pairs + log_n()"
    assert config.pattern[0].rotary is rotary.pairs


@pytest.mark.parametrize("table", variants.REGISTRIES)
def test_every_name_reads_back(table):
    for name, make in variants.REGISTRIES[table].items():
        spelling = ENCODINGS[name] if table == "rotary" else name
        if table in variants.COMPONENTS:
            assert variants.part(table, make().name) == make() and hash(make()) == hash(make())
        canonical, config = variants.apply(TINY, spelling)
        assert variants.name(spelling) == canonical
        assert variants.apply(TINY, canonical) == (canonical, config)


@pytest.mark.parametrize(
    "variant, message",
    [
        ("nope + alibbi()", r"unknown encoding 'alibbi'.*'alibi'"),
        ("rope + nope", r"two terms for rotary: rope\(theta=10000\) and nope\(\)"),
        ("t5_bias(bucket=8)", r"no parameter 'bucket'.*'buckets'"),
        ("t5_bias(buckets='a')", r"buckets='a' must be a number"),
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
    unrolled = dataclasses.replace(config, scan=False)
    init = lambda c: Decoder(c).init(jax.random.key(0), method=lambda module: module.embedding)  # noqa: E731
    variables = nn.unbox(init(config))
    jax.tree.map(np.testing.assert_array_equal, variables, nn.unbox(init(unrolled)))
    tokens = jax.random.randint(jax.random.key(7), (1, 20), 0, 256)
    got, expected = (jax.jit(Decoder(c).apply)(variables, tokens)[0] for c in (config, unrolled))
    np.testing.assert_allclose(got, expected, atol=1e-5)


# --- configuration ----------------------------------------------------------------------------


def settings(**model):
    config = settings.default()
    config.model.preset = "tiny"
    config.model.update(model)
    return config


def test_settings_set_the_pattern_and_the_parts():
    config = settings(pattern="gemma3(window=8)", query_scale="log_n()", logits="alibi()")
    decoder = settings.decoder_config(config, 256)
    expected = [
        dataclasses.replace(
            spec, query_scale=query_scaling.LogN(), score_function=attention_scores.Alibi()
        )
        for spec in layer_patterns.gemma3(window=8)
    ]
    assert decoder.pattern == tuple(expected)
    assert settings.decoder_config(settings(), 256).pattern == (LayerSpec(),)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"logits": "alibbi()"}, r"unknown logits 'alibbi'.*'alibi'.*set config\.model\.logits"),
        ({"query_scale": "alibi()"}, r"unknown query scale 'alibi'.*config\.model\.query_scale"),
        ({"pattern": "gemma_3()"}, r"unknown pattern 'gemma_3'.*'gemma3'"),
        ({"pattern": "gemma3()", "rotary": "nope"}, r"both choose the encoding"),
        ({"logits": "alibi()", "attention": "cudnn"}, r"alibi\(\) runs on the reference backend"),
    ],
)
def test_wrong_settings_are_refused(model, message):
    with pytest.raises(UserError, match=message):
        settings.check(settings(**model))


def test_settings_at_none_are_no_part_of_a_runs_identity():
    """So that a run from before they existed goes on."""
    assert not {"model.score_function", "model.pattern"} & run_folder.identity(settings()).keys()
    assert run_folder.identity(settings(logits="alibi()"))["model.score_function"] == "alibi()"


# --- model.json and evaluation ----------------------------------------------------------------


def test_model_json_reads_back(tmp_path):
    _, config = variants.apply(TINY, "irope(chunk=8) + t5_bias(buckets=8)")
    config = dataclasses.replace(config, layers=4)
    runs.write_model(tmp_path, config, load_tokenizer("bytes"))
    assert runs.read_model(tmp_path) == config


def test_model_json_from_before_reads_back(tmp_path):
    runs.write_model(tmp_path, TINY, load_tokenizer("bytes"))
    file = tmp_path / runs.MODEL_FILE
    fields = json.loads(file.read_text())
    fields["decoder"]["pattern"] = [{"rotary": "rope(theta=10000)", "window": None}]
    file.write_text(json.dumps(fields))
    assert runs.read_model(tmp_path) == TINY


def save(folder, config):
    """A run with one checkpoint of initial weights."""
    init = Decoder(config).init(jax.random.key(0), method=lambda module: module.embedding)
    params = nn.unbox(init)["params"]
    runs.write_model(folder, config, load_tokenizer("bytes"))
    (folder / "checkpoints").mkdir()
    with runs.Manager(folder) as manager:
        manager.save(1, {runs.PARAMS: params})
    return params


def test_a_trained_model_runs_with_another_encoding(tmp_path):
    """One argument: p-RoPE in place of RoPE, with a scale that needs no training."""
    params = save(tmp_path, TINY)
    decoder, loaded = runs.load(tmp_path, rotary="p_rope(p=0.5) + log_n(train_length=16)")
    spec = LayerSpec(rotary.p_rope(0.5), query_scale=query_scaling.LogN(16))
    assert decoder.config.pattern == (spec,)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    tokens = jnp.tile(jnp.arange(24), (8, 1))  # a row a device
    expected = Decoder(decoder.config).apply({"params": params}, tokens)[0]
    np.testing.assert_allclose(decoder.apply({"params": loaded}, tokens)[0], expected, atol=1e-5)
    with pytest.raises(UserError, match=r"needs .*ss_max_scale.* did not train"):
        runs.load(tmp_path, rotary="rope + ss_max()")


def test_arrays_of_the_encoding_that_was_replaced_are_left_out(tmp_path):
    _, config = variants.apply(TINY, "nope + t5_bias()")
    params = save(tmp_path, config)
    decoder, loaded = runs.load(tmp_path, rotary="alibi()")
    assert rotary.name_of(decoder.config.pattern[0].rotary) == "nope()"
    assert set(loaded) == set(params) - {"shared"}
    decoder.apply({"params": loaded}, jnp.tile(jnp.arange(4), (8, 1)))
