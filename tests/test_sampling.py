"""Generation: the cache changes nothing, for every encoding, logit function and pattern."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import sharding
from rope_study.data import load_tokenizer
from rope_study.decoder import Decoder, LayerSpec, presets, variants
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS
from rope_study.decoder.query_scaling import QUERY_SCALES
from rope_study.decoder.sampling import empty_cache, generate, generate_tokens
from rope_study.errors import UserError
from rope_study.rotary import ENCODINGS

TINY = dataclasses.replace(presets.tiny(), vocab_size=64)
TOKENS = jax.random.randint(jax.random.key(3), (2, 14), 0, 64)


init = random_parameters


def check_cached_equals_uncached(config, prefill=5):
    decoder, params = Decoder(config), init(config)
    expected = jax.jit(decoder.apply)({"params": params}, TOKENS)[0]
    extend = jax.jit(lambda *a: decoder.apply({"params": params}, *a, method="extend"))
    cache = empty_cache(decoder, params, 2, 16)
    logits, cache = extend(TOKENS[:, :prefill], cache, 0)
    np.testing.assert_allclose(logits, expected[:, prefill - 1], atol=2e-5)
    for place in range(prefill, TOKENS.shape[1]):
        logits, cache = extend(TOKENS[:, place : place + 1], cache, place)
        np.testing.assert_allclose(logits, expected[:, place], atol=2e-5, err_msg=str(place))


@pytest.mark.parametrize("name", ENCODINGS)
def test_cached_logits_equal_uncached_for_every_encoding(name):
    check_cached_equals_uncached(TINY.with_rotary(ENCODINGS[name].example(16)))


@pytest.mark.parametrize("name", [*SCORE_FUNCTIONS, *QUERY_SCALES])
def test_cached_logits_equal_uncached_for_every_score_function_and_scale(name):
    maker = {**SCORE_FUNCTIONS, **QUERY_SCALES}[name]
    field = "score_function" if name in SCORE_FUNCTIONS else "query_scale"
    check_cached_equals_uncached(TINY.with_layers(**{field: maker.example(16)}))


@pytest.mark.parametrize("pattern", ["gemma3(window=4)", "irope(chunk=4, floor=4)"])
def test_cached_logits_equal_uncached_for_patterns(pattern):
    """Seven layers: repeats and a remainder; windows and chunks shorter than the text."""
    config = dataclasses.replace(variants.apply(TINY, pattern)[1], layers=7)
    check_cached_equals_uncached(config)
    check_cached_equals_uncached(dataclasses.replace(config, scan=False))


def test_cached_logits_equal_uncached_where_layers_share_keys():
    local, wide = LayerSpec(window=4, value_norm=True), LayerSpec(head_dim=32, keys_as_values=True)
    shared = (dataclasses.replace(local, keys_from=0), LayerSpec(head_dim=32, keys_from=1))
    config = dataclasses.replace(
        TINY, layers=4, pattern=(local, wide, *shared), post_norms=True, norm_offset=0.0,
        layer_scalar=True, per_layer_dim=8, per_layer_vocab_size=64, tied=False, final_cap=5.0,
    )  # fmt: skip
    check_cached_equals_uncached(config)


def test_greedy_takes_the_likeliest_token_and_forces_longer_prompts():
    decoder, params = Decoder(TINY), init(TINY)
    prompts = np.array([[5, 9, 2, 0, 0], [7, 1, 3, 8, 4]])
    got = generate_tokens(decoder, params, prompts, [3, 5], tokens=4)
    apply = jax.jit(decoder.apply)
    for row, prompt in zip(got, (prompts[0, :3], prompts[1]), strict=True):
        expected = list(prompt)
        for _ in range(4):
            padded = jnp.array([expected + [0] * (9 - len(expected))])  # compiled once
            logits = apply({"params": params}, padded)[0][:, : len(expected)]
            expected.append(int(logits[0, -1].argmax()))
        assert row.tolist() == expected


def test_sampling_follows_seed_and_temperature():
    decoder, params = Decoder(TINY), init(TINY)
    prompts = np.zeros((64, 1), int)
    draw = lambda **kw: np.array(generate_tokens(decoder, params, prompts, tokens=6, **kw))  # noqa: E731
    warm = draw(temperature=1.0)
    np.testing.assert_array_equal(warm, draw(temperature=1.0))
    assert (warm != draw(temperature=1.0, seed=1)).any()
    assert len(np.unique(warm[:, 1])) > 5  # rows are drawn one by one
    np.testing.assert_array_equal(draw(temperature=1e-5), draw())


def test_sampled_frequencies_are_the_decoders_probabilities():
    decoder, params = Decoder(TINY), init(TINY)
    drawn = generate_tokens(decoder, params, np.zeros((4096, 1), int), tokens=1, temperature=2.0)
    counts = np.bincount(np.array(drawn)[:, 1], minlength=64)
    logits = decoder.apply({"params": params}, jnp.zeros((1, 1), jnp.int32))[0][0, 0]
    expected = 4096 * np.asarray(jax.nn.softmax(logits / 2.0))
    likely = expected > 10
    assert likely.sum() > 5
    chi_square = ((counts - expected) ** 2 / expected)[likely].sum() / likely.sum()
    assert chi_square < 2


@pytest.mark.eight_devices
def test_generation_under_a_mesh_equals_one_device():
    """Three prompts on eight devices."""
    config = dataclasses.replace(TINY, kv_heads=2)
    params = init(config)
    prompts = np.arange(12).reshape(3, 4)
    expected = generate_tokens(Decoder(config), params, prompts, tokens=5)
    layout = sharding.make_layout("data=2,fsdp=2,tensor=2")
    got = generate_tokens(Decoder(config, layout), params, prompts, tokens=5)
    np.testing.assert_array_equal(got, expected)


def test_text_in_text_out():
    config = presets.tiny()
    decoder, tokenizer = Decoder(config), load_tokenizer("bytes")
    (text,) = generate(decoder, init(config), tokenizer, ["To be"], tokens=3)
    assert text.startswith("To be")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": 0}, r"tokens=0 must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be at least 0"),
        ({"lengths": [2, 0]}, r"a prompt is empty"),
    ],
)
def test_wrong_requests_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        generate_tokens(Decoder(TINY), init(TINY), np.zeros((2, 2), int), **change)


def test_a_model_that_needs_bos_refuses_texts_without():
    config = dataclasses.replace(TINY, bos=2)
    with pytest.raises(UserError, match=r"begins with token 5.*needs BOS, 2.*encode_batch"):
        generate_tokens(Decoder(config), init(config), np.array([[2, 1], [5, 2]]))
