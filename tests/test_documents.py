"""Documents that share a window and keep apart: as if each were read by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters
from test_attention_backends import HOPPER, TPU, on
from tiny_config import get_config

from rope_study import sharding
from rope_study.decoder import Decoder, Probe, attention, fit_layout, presets, variants
from rope_study.decoder.attention import backends, reference, splash
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS
from rope_study.decoder.query_scaling import QUERY_SCALES
from rope_study.errors import UserError
from rope_study.training import run_folder, settings

BOS, END = 256, 200
TINY = dataclasses.replace(presets.tiny(), layers=2, document_start=BOS)
AFTER = dataclasses.replace(TINY, document_start=None, document_end=END)
TEXTS = np.random.default_rng(0).integers(0, 200, (2, 3, 9))  # rows, documents, tokens


def tokens(config):
    """int[rows, 1 + documents x tokens]: a window that begins with one and ends with another."""
    place = 0 if config.document_start is not None else 8
    texts = TEXTS.copy()
    texts[..., place] = BOS if place == 0 else END
    return np.concatenate([texts.reshape(2, -1), texts[:, 0, :1]], axis=1).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def losses_and_gradients(decoder, params, window):
    """The loss of every target, and the gradients of a sum of them weighted by their place."""
    inputs, targets = window[:, :-1], window[:, 1:]
    weights = 1 + jnp.cos(jnp.arange(27.0)).reshape(-1, inputs.shape[1]).repeat(2, axis=0)

    def loss(params):
        return decoder.apply({"params": params}, inputs, targets, weights, method="loss")

    losses = decoder.apply({"params": params}, inputs, targets, method="token_losses")
    return losses, jax.grad(loss)(params)


def by_themselves(config, params):
    """The same of each document alone, read by a decoder that knows nothing of documents."""
    window = tokens(config)
    alone = np.stack([window[:, i * 9 : i * 9 + 10] for i in range(3)], axis=1).reshape(6, 10)
    plain = Decoder(dataclasses.replace(config, document_start=None, document_end=None))
    inputs, targets = alone[:, :-1], alone[:, 1:]
    weights = np.tile(1 + np.cos(np.arange(27.0)).reshape(3, 9), (2, 1))

    def loss(params):
        return plain.apply({"params": params}, inputs, targets, weights, method="loss")

    losses = plain.apply({"params": params}, inputs, targets, method="token_losses")
    return np.asarray(losses).reshape(2, 27), jax.grad(loss)(params)


def check(config, layout=None):
    params = random_parameters(config)
    got = losses_and_gradients(Decoder(config, layout), params, tokens(config))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 2e-4, 2e-5),
        got,
        by_themselves(config, params),
    )


VARIANTS = ["rope", "gemma3(window=4)", "gemma3(global_rotary='nope()') + qk_norm()"]
VARIANTS += [f"{e.name}" for e in (maker.example() for maker in QUERY_SCALES.values())]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_window_of_documents_is_the_documents(variant):
    check(variants.apply(TINY, variant)[1])


@pytest.mark.parametrize("name", SCORE_FUNCTIONS)
def test_score_functions_keep_documents_apart(name):
    function = SCORE_FUNCTIONS[name].example()
    encoding = "nope" if name == "tra" else "rope"
    check(variants.apply(TINY, encoding)[1].with_layers(score_function=function))


def test_documents_that_end_with_a_token():
    check(AFTER)


@pytest.mark.parametrize("variant", ["rope", "gemma3(window=4)", "rope + alibi()"])
def test_in_blocks_of_queries(variant, monkeypatch):
    for name, size in (("LONG", 8), ("QUERY_BLOCK", 4), ("KEY_PARTS", 3)):
        monkeypatch.setattr(reference, name, size)
    jax.clear_caches()
    check(variants.apply(TINY, variant)[1])
    jax.clear_caches()


def test_by_the_kernel_of_tpus(monkeypatch):
    """As plain JAX, in place of what the CPU would choose."""
    monkeypatch.setattr(backends, "choose", lambda *_: backends.Choice("splash", "asked for"))
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))
    jax.clear_caches()
    check(variants.apply(TINY, "gemma3(window=4)")[1])
    jax.clear_caches()


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", ["context=3", "data=2,context=3"])
@pytest.mark.parametrize("variant", ["rope", "gemma3(window=4)", "rope + alibi()"])
def test_where_devices_share_the_length(mesh, variant):
    devices = jax.devices()[: 3 if mesh == "context=3" else 6]
    config = dataclasses.replace(variants.apply(TINY, variant)[1], d_model=48)
    check(config, fit_layout(config, sharding.make_layout(mesh, devices=devices)))


def test_the_attention_that_probes_read_keeps_documents_apart():
    def measure(activations, weights):
        return activations["attention"](lambda attention, queries: jnp.sum(attention, axis=0))

    _, seen = Decoder(TINY).apply(
        {"params": random_parameters(TINY)}, tokens(TINY)[:, :-1],
        probes=[Probe("seen", ("attention",), measure)],
    )  # fmt: skip
    for weights in seen["seen"]:
        assert not weights[:, np.kron(np.eye(3), np.ones((9, 9))) == 0].any()
        np.testing.assert_allclose(weights.sum(-1), 2, rtol=1e-5)


# --- which backend ----------------------------------------------------------------------------


def test_backends_without_masks_say_so():
    config = dataclasses.replace(TINY, compute_dtype="bfloat16", head_dim=64)
    (spec,) = config.pattern
    best = attention.choose(config, spec, on(HOPPER))
    assert best.backend == "reference" and "no masks of documents" in best.reason
    assert attention.choose(config, spec, on(TPU)).backend == "splash"
    message = "attention='cudnn' .* no masks of documents, which 'reference' and 'splash' have"
    with pytest.raises(UserError, match=message) as caught:
        fit_layout(dataclasses.replace(config, attention="cudnn"), on(HOPPER))
    assert caught.value.argument == "attention"


def test_chunks_are_refused():
    with pytest.raises(UserError, match=r"chunk=8: .* documents='masked'") as caught:
        TINY.with_layers(chunk=8)
    assert caught.value.argument == "documents"


def test_a_separator_is_an_id_of_the_model():
    with pytest.raises(UserError, match="document_start=5000 must be below vocab_size"):
        dataclasses.replace(TINY, document_start=5000)


# --- settings ---------------------------------------------------------------------------------


def test_what_was_chosen_is_part_of_the_run():
    configs = [get_config(), get_config()]
    configs[1].data.documents = "masked"
    joined, masked = (settings.resolve(config).runs[0] for config in configs)
    assert (joined.decoder.document_start, masked.decoder.document_start) == (None, BOS)
    assert masked.data.documents == "masked"
    assert run_folder.config_fields(masked.decoder)["document_start"] == BOS
    configs[1].data.documents = "mask"
    with pytest.raises(UserError, match=r"neither 'joined' nor 'masked'\. Did you mean 'masked'"):
        settings.resolve(configs[1])
