"""What a decoder may be given, wherever tokens come in: ids, BOS, padding, tokenizers."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import checkpoints, data, interventions, probes, rotary
from rope_study.decoder import Decoder, check_params, check_tokens, check_vocabulary, presets
from rope_study.decoder.sampling import generate, generate_tokens
from rope_study.errors import UserError
from rope_study.reports.model import probe
from rope_study.sharding import one_device
from rope_study.training.evaluate import evaluate

CONFIG = dataclasses.replace(presets.tiny(), vocab_size=64, layers=1)
GEMMA = dataclasses.replace(CONFIG, bos=2)
TOKENS = np.array([[2, 5, 6, 7], [2, 8, 9, 2]], np.int32)
WEIGHTS = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.float32)


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(CONFIG, one_device())
    start = decoder.init(jax.random.key(0), method=lambda module: module.embedding)
    return decoder, nn.unbox(start["params"])


def run(decoder, params, tokens, weights):
    return probes.run(decoder, params, [(tokens, weights)], [probes.frequency_usage])


def measure(decoder, params, tokens, weights, copies=0):
    nothing = interventions.rescale(interventions.band(indices=0), 1.0)
    return interventions.measure(
        decoder, params, [(tokens, weights)], {"nothing": nothing}, copies=copies
    )


CALLS = {
    "probes.run": run,
    "measure": measure,
    "generate_tokens": lambda d, p, t, w: generate_tokens(d, p, t, tokens=1),
    "evaluate": lambda d, p, t, w: evaluate(d, p, [(t, w)]),
    "attention_maps": lambda d, p, t, w: probes.attention_maps(d, p, t[0]),
    "token_influence": lambda d, p, t, w: probes.token_influence(d, p, t[0]),
    "Decoder.apply": lambda d, p, t, w: d.apply({"params": p}, t),
    "compare": lambda d, p, t, w: checkpoints.compare(d, p, {"tokens": t, "logits": np.ones(1)}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", [64, 100_000, -1, -100])
def test_ids_that_the_model_does_not_have(model, name, bad):
    tokens = TOKENS.copy()
    tokens[0, 2] = bad
    with pytest.raises(UserError, match=rf"has ids from .*{bad}.*, not 0\.\.63, which the model"):
        CALLS[name](*model, tokens, WEIGHTS)


@pytest.mark.parametrize("name", [*CALLS][:-2])
def test_texts_without_the_bos_that_a_model_needs(model, name):
    decoder = Decoder(GEMMA, one_device())
    with pytest.raises(UserError, match=r"begins with token 5, and this model needs BOS, 2"):
        CALLS[name](decoder, model[1], TOKENS[:, 1:], WEIGHTS[:, 1:])


@pytest.mark.parametrize("batch", [TOKENS, [TOKENS], (TOKENS, WEIGHTS, 1), 3])
def test_what_is_no_pair_of_tokens_and_weights(model, batch):
    """An array [2, T] is no pair either, whatever it unpacks to."""
    message = r"batches must be a list of pairs \(tokens int\[B, T\], weights"
    for call in (
        lambda: probes.run(*model, [batch], [probes.frequency_usage]),
        lambda: interventions.repeated_sequences([batch], 1, 2),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_weights_that_count_nothing(model, bad):
    weights = WEIGHTS.copy()
    weights[0, 1] = bad
    with pytest.raises(UserError, match=r"weights must be finite numbers, and 0 leaves"):
        run(*model, TOKENS, weights)


def test_parameters_of_another_decoder(model):
    """In Flax's own wrapping, of another width, or one missing; others besides are left alone."""
    decoder, params = model
    embedding = params["embedding"]
    for wrong, found in [
        ({"params": params}, r"'embedding' is missing and the decoder's is \(64, 32\)"),
        (params | {"embedding": embedding[:, 1:]}, r"'embedding' is \(64, 31\) and"),
        ({**params, "final_norm": np.ones(3)}, r"'final_norm' is \(3,\) and"),
    ]:
        with pytest.raises(UserError, match=found):
            check_params(CONFIG, wrong)
    run(decoder, random_parameters(CONFIG) | {"more": embedding}, TOKENS, WEIGHTS)


@pytest.mark.parametrize("call", [run, measure])
def test_padding_on_the_left(model, call):
    tokens = np.array([[0, 0, 1, 5], [1, 5, 6, 7]], np.int32)
    with pytest.raises(UserError, match=r"padded on the left: .* put padding on the right"):
        call(*model, tokens, np.array([[0, 0, 1, 1], [1, 1, 1, 1]], np.float32))


@pytest.mark.parametrize("weights", [
    WEIGHTS, 0 * WEIGHTS, [[0, 1, 1, 1], [0, 1, 1, 1]], [[0, 0, 1, 1], [1, 0, 1, 0]],
])  # fmt: skip
def test_tokens_may_be_left_out_of_what_is_counted(weights):
    """Padding on the right, rows that only fill up, BOS, and places that a user does not want."""
    check_tokens(GEMMA, TOKENS, np.asarray(weights, np.float32))


@pytest.mark.parametrize(
    "tokens, weights",
    [(TOKENS[0], None), (TOKENS + 0.5, None), (TOKENS, WEIGHTS[:, :2]), ([["a"]], None)],
)
def test_what_is_no_text(tokens, weights):
    with pytest.raises(UserError, match=r"are no texts: give int\[B, T\]"):
        check_tokens(CONFIG, tokens, weights)


def test_a_layer_that_reads_tokens_anew_has_fewer_rows():
    fewer = dataclasses.replace(CONFIG, per_layer_dim=2, per_layer_vocab_size=9)
    with pytest.raises(UserError, match=r"ids from 2 to 9, not 0\.\.8"):
        check_tokens(fewer, TOKENS)


def test_nothing_to_measure(model):
    for call in (run, measure):
        with pytest.raises(UserError, match=r"all weights are 0|nothing to predict"):
            call(*model, TOKENS, 0 * WEIGHTS)
    with pytest.raises(UserError, match=r"nothing to evaluate"):
        evaluate(*model, [(TOKENS, 0 * WEIGHTS)])
    with pytest.raises(UserError, match=r"copies=2: the texts have no token but their first"):
        measure(*model, np.full((2, 4), 2), np.ones((2, 4), np.float32), copies=2)


def test_learned_frequencies_are_read_as_trained():
    """By probes, by contributions and by bands of interventions, in radians per token."""
    config = CONFIG.with_rotary(rotary.learned_rope())
    params = random_parameters(config, scale=0.2)
    expected = rotary.learned_rope().learned_frequencies(params["shared"])
    assert np.abs(np.log(expected / rotary.rope().inverse_frequencies(16))).min() > 1e-3
    decoder = Decoder(config, one_device())
    usage = run(decoder, params, TOKENS, WEIGHTS)["frequency_usage"]
    np.testing.assert_array_equal(usage.inverse_frequency.sel(layer=0), expected)
    np.testing.assert_allclose(usage.cycles.sel(layer=0), expected * 4 / (2 * np.pi))
    assert "learned_rope" in usage.model
    parts = probes.contributions(decoder, params, TOKENS[0], 0, 0, 3, 1)
    np.testing.assert_array_equal(parts.inverse_frequency, expected)
    slow = interventions.band(frequencies=(0, float(np.median(expected))))
    halves = [interventions.ablate(band) for band in (slow, interventions.band(indices=range(8)))]
    measured = interventions.measure(
        decoder, params, [(TOKENS, WEIGHTS)], {"slow": halves[0], "all": halves[1]}, copies=0
    )
    assert measured.loss_difference.sel(intervention="slow") != 0


class Small(data.ByteTokenizer):
    """With so many tokens, of which some were added later."""

    def __init__(self, size, added=0):
        self.vocab_size, self._added = size, added

    @property
    def base_size(self):
        """Without those."""
        return self.vocab_size - self._added


def test_the_tokenizer_of_another_model(model):
    """Both sizes in one line; padded embeddings and added tokens are no mistake."""
    for size, added in [(64, 0), (50, 0), (32, 0), (65, 1)]:
        check_vocabulary(CONFIG, Small(size, added))
    for size, added in [(65, 0), (70, 5), (31, 0)]:
        with pytest.raises(UserError, match=rf"has {size} tokens and the model 64 rows") as caught:
            check_vocabulary(CONFIG, Small(size, added))
        assert caught.value.argument == "tokenizer"
    for use in (
        lambda: generate(*model, data.ByteTokenizer(), ["To be"]),
        lambda: probe(*model, data.ByteTokenizer(), data.load_texts(["To be"])),
    ):
        with pytest.raises(UserError, match=r"has 257 tokens and the model 64 rows"):
            use()
