"""The decoder: causality, scan and remat, parameter counts, probes and edits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import rotary
from rope_study.decoder import (
    CONSTANTS,
    HOOK_POINTS,
    Decoder,
    LayerSpec,
    Probe,
    attention,
    fit_layout,
    parameter_count,
    parameter_tree,
    presets,
    variants,
)
from rope_study.decoder.norms import rms_norm
from rope_study.errors import UserError
from rope_study.probes import frequency_usage
from rope_study.probes.run import compiled
from rope_study.sharding import compiler, make_layout, one_device

TINY = presets.tiny()
TOKENS = jax.random.randint(jax.random.key(7), (2, 24), 0, 256)


def init(config):
    return {"params": random_parameters(config)}


def logits(config, variables, tokens=TOKENS, **kwargs):
    return jax.jit(lambda v, t: Decoder(config).apply(v, t, **kwargs)[0])(variables, tokens)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("encoding", ["rope", "nope"])
def test_causality_by_gradient(encoding, window):
    """The logits of position t depend on all tokens up to t that its windows reach, no other."""
    spec = LayerSpec(getattr(rotary, encoding)(), window)
    config = dataclasses.replace(TINY, pattern=(spec,))
    variables = init(config)
    position, table = 10, variables["params"]["embedding"]

    def logit(embedded):
        # One row of the table a position, so that the gradient says which positions count.
        params = variables["params"] | {"embedding": embedded}
        x, _ = Decoder(config).apply({"params": params}, jnp.arange(24)[None], method="features")
        return jnp.sum(x[0, position] ** 3)

    influence = jnp.abs(jax.grad(logit)(table)[:24]).sum(axis=-1)
    reach = position if window is None else (window - 1) * config.layers
    expected = np.arange(24) <= position
    expected &= np.arange(24) >= position - reach
    np.testing.assert_array_equal(np.asarray(influence > 0), expected)


PATTERNS = {
    "one": (LayerSpec(),),
    "mixed": (LayerSpec(rotary.rope(), 4), LayerSpec(rotary.nope()), LayerSpec(rotary.p_rope())),
}


def test_scan_and_remat_equal_unrolled():
    """Seven layers leave a remainder of one in a pattern of three."""
    config = dataclasses.replace(TINY, layers=7, pattern=PATTERNS["mixed"])
    variables = init(config)

    def value_and_grad(config):
        def loss(variables):
            return Decoder(config).apply(variables, TOKENS[:, :-1], TOKENS[:, 1:], method="loss")

        return jax.jit(jax.value_and_grad(loss))(variables)

    expected = value_and_grad(config)
    for change in ({"scan": False}, {"remat": "full"}, {"remat": "dots"}):
        got = value_and_grad(dataclasses.replace(config, **change))
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got[1], expected[1])


def test_layers_of_a_pattern_run_in_order():
    """Moving the only NoPE layer of four changes the result, and specs repeat by place."""
    config = dataclasses.replace(TINY, layers=4)
    nope_first = dataclasses.replace(config, pattern=(LayerSpec(rotary.nope()), *[LayerSpec()] * 3))
    nope_last = dataclasses.replace(config, pattern=(*[LayerSpec()] * 3, LayerSpec(rotary.nope())))
    assert nope_first.layer_specs[0].rotary == rotary.nope()
    variables = init(nope_first)
    assert not np.allclose(logits(nope_first, variables), logits(nope_last, variables))


def test_parameter_counts_of_the_released_models():
    """Gemma's released counts (2,506,172,416 and 8,537,680,896 with 256,000 rows) plus 128 rows."""
    assert parameter_count(presets.gemma_2b()) == 2_506_172_416 + 128 * 2048
    assert parameter_count(presets.gemma_7b()) == 8_537_680_896 + 128 * 3072


def test_attention_equals_a_direct_float64_statement():
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 9, 6, 8))
    k, v = (jax.random.normal(key, (2, 9, 3, 8)) for key in keys[1:])
    expected = np.zeros((2, 9, 6, 8))
    for b, t, n in np.ndindex(2, 9, 6):
        low = max(0, t - 3)  # a window of 4
        logit = np.asarray(k, np.float64)[b, low : t + 1, n // 2] @ np.asarray(q)[b, t, n]
        weight = np.exp(logit / np.sqrt(8))
        expected[b, t, n] = weight / weight.sum() @ np.asarray(v)[b, low : t + 1, n // 2]
    np.testing.assert_allclose(attention.attend(q, k, v, window=4), expected, atol=1e-5)
    weights = attention.probabilities(q, k, window=4)
    mixed = np.einsum("bnts,bsnh->btnh", weights, np.repeat(v, 2, axis=2))
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("window, chunk", [(None, None), (5, None), (None, 6)])
def test_blocks_of_queries_equal_all_at_once(window, chunk, biased, monkeypatch):
    """Values and gradients; 21 queries leave a last block of one in blocks of four.

    Without a function of its own for the logits a block reads a third of the keys, two or all.
    """
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (2, 21, 4, 8))
    k, v = (jax.random.normal(key, (2, 21, 2, 8)) for key in keys[1:])

    def run(q, k, v):
        def softmax(logits, mask, queries):
            biased = logits + queries[:, None] * jnp.arange(21)
            return jax.nn.softmax(jnp.where(mask, biased, -jnp.inf))

        return attention.attend(q, k, v, window, chunk=chunk, softmax=softmax if biased else None)

    loss = lambda *a: jnp.sum(jnp.sin(run(*a)))  # noqa: E731
    output_and_gradients = lambda *a: (run(*a), jax.grad(loss, (0, 1, 2))(*a))  # noqa: E731
    expected = jax.jit(lambda *a: output_and_gradients(*a))(q, k, v)
    for name, value in {"LONG": 8, "QUERY_BLOCK": 4, "KEY_PARTS": 3}.items():
        monkeypatch.setattr(attention.reference, name, value)
    got = jax.jit(lambda *a: output_and_gradients(*a))(q, k, v)  # another function: compiled anew
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)


@pytest.mark.parametrize("pattern", ["mixed", "one"])
def test_attention_that_probes_see_is_the_layers_own_in_blocks(pattern, monkeypatch):
    """Sums over blocks of 5 of 24 tokens, of what is linear in the weights."""
    config = dataclasses.replace(TINY, layers=4, pattern=PATTERNS[pattern])
    variables = init(config)

    def measure(activations, weights):
        return activations["attention"](
            lambda w, queries: {
                "by_query": jnp.zeros((2, 4, 24, 24)).at[:, :, queries].add(w),
                "received": w.sum(axis=2),
            }
        )

    probe = Probe("seen", ("attention",), measure)

    def run():
        apply = lambda v: Decoder(config).apply(v, TOKENS, probes=[probe])[1]["seen"]  # noqa: E731
        return jax.jit(apply)(variables)

    expected = run()
    monkeypatch.setattr(attention.reference, "LONG", 8)
    monkeypatch.setattr(attention.reference, "QUERY_BLOCK", 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-6, 1e-6), run(), expected)
    np.testing.assert_allclose(expected[0]["by_query"].sum(axis=-1), 1, atol=1e-6)


def test_long_attention_holds_no_square_of_the_length():
    """Temporary memory at 16,384 tokens: a block of logits, 512 x 16,384, not 1 GiB."""
    a = jax.ShapeDtypeStruct((1, 16_384, 1, 8), jnp.float32)
    compiled = jax.jit(attention.attend).lower(a, a, a).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200 * 2**20


def test_rms_norm_adds_one_to_its_weight():
    x = jnp.array([[3.0, 4.0]])
    got = rms_norm(x, jnp.array([0.0, 1.0]), 0.0)
    np.testing.assert_allclose(got, [[3 / 12.5**0.5, 2 * 4 / 12.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scan", [True, False])
def test_probes_see_every_name_with_and_without_remat(remat, scan):
    config = dataclasses.replace(TINY, layers=3, remat=remat, scan=scan)

    def measure(activations, weights):
        return activations | {"attention": activations["attention"](lambda w, _: w)}

    shapes = Probe("shapes", tuple(HOOK_POINTS), measure)
    _, aux = Decoder(config).apply(init(config), TOKENS, probes=[shapes])
    assert len(aux["shapes"]) == 3
    for layer in aux["shapes"]:
        assert set(layer) == {*HOOK_POINTS, *CONSTANTS}
        assert layer["q"].shape == (2, 24, 4, 16) and layer["k_rotated"].shape == (2, 24, 2, 16)
        assert layer["residual"].shape == (2, 24, 32)
        read = attention.mix(layer["attention"], layer["v"])
        np.testing.assert_allclose(read, layer["attention_output"], atol=1e-6)
    assert not np.allclose(aux["shapes"][0]["q"], aux["shapes"][1]["q"])


def test_what_reads_no_residual_is_measured_before_the_mlp():
    """Each of two probes tells what was there when it was asked."""
    activation_names = {}

    def recording_probe(name, reads):
        def measure(activations, weights):
            activation_names[name] = set(activations)
            return jnp.sum(activations[reads])

        return Probe(name, (reads,), measure)

    probes = [recording_probe("late", "residual"), recording_probe("early", "q")]
    _, aux = Decoder(TINY).apply(init(TINY), TOKENS, probes=probes)
    assert activation_names["late"] == {*HOOK_POINTS, *CONSTANTS}
    assert activation_names["early"] == activation_names["late"] - {"residual"}
    assert list(aux) == ["late", "early"] and np.isfinite(aux["early"]).all()


@pytest.mark.parametrize("scan", [True, False])
def test_probed_forward_equals_plain_forward_bit_for_bit(scan):
    config = dataclasses.replace(TINY, layers=3, scan=scan)
    variables = init(config)
    plain = logits(config, variables)
    np.testing.assert_array_equal(logits(config, variables, probes=[frequency_usage]), plain)


def test_probing_16_bit_parameters_converts_a_layer_at_a_time():
    """Temporaries of a program for 16 layers: far below their parameters in f32."""
    config = dataclasses.replace(TINY, layers=16, d_model=256, mlp_hidden=1024)
    decoder = Decoder(config, one_device())
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), init(config)["params"])
    weights = jnp.ones(TOKENS.shape)
    _, measure = compiled(decoder, params, [frequency_usage])
    memory = measure.lower(params, TOKENS, weights).compile().memory_analysis()
    in_f32 = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert memory.temp_size_in_bytes < 0.3 * in_f32
    expected = measure(params, TOKENS, weights)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    got = compiled(decoder, wide, [frequency_usage])[1](wide, TOKENS, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_options_that_xla_has_not_are_left_out():
    """One that a version lost should cost speed, not the result."""
    assert compiler.known({"xla_no_such_option": 1, "xla_cpu_scheduler_type": "nonsense"}) == {}


def test_an_edit_changes_one_layer():
    """Zeroing the values of layer 1 of 3 leaves what layer 0 does and changes what follows."""
    config = dataclasses.replace(TINY, layers=3)
    variables = init(config)
    probe = Probe("seen", ("residual",), lambda a, w: a["residual"])

    def zero_values(name, layer, value):
        return jnp.where(layer == 1, 0.0, value) if name == "v" else value

    run = lambda **kw: Decoder(config).apply(variables, TOKENS, probes=[probe], **kw)[1]["seen"]  # noqa: E731
    plain, edited = run(), run(edit=zero_values)
    np.testing.assert_array_equal(plain[0], edited[0])
    assert not np.allclose(plain[1], edited[1])


def test_custom_function_runs_as_the_rotary():
    config = TINY.with_rotary(lambda x, positions: x)
    variables = init(config)
    np.testing.assert_array_equal(
        logits(config, variables), logits(TINY.with_rotary(rotary.nope()), variables)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head_dim": 15}, "head_dim=15 is odd"),
        ({"heads": 3}, r"heads=3 is not a multiple of kv_heads=2"),
        ({"layers": 0}, r"layers=0 must be at least 1"),
        ({"remat": "some"}, r"remat='some' is not one of none, full, dots"),
        ({"compute_dtype": "float8"}, r"compute_dtype='float8' is not one of"),
        ({"attention": "flash"}, r"attention='flash' is not one of"),
        ({"activation": "relu"}, r"activation='relu' is not one of gelu, silu"),
        ({"pattern": (LayerSpec(kv_heads=3),)}, r"heads=4 is not a multiple of kv_heads=3"),
        ({"pattern": (LayerSpec(keys_from=0),)}, r"keys_from=0 at place 0.*an earlier"),
        (
            {"pattern": (LayerSpec(head_dim=8), LayerSpec(keys_from=0))},
            r"keys_from=0 at place 1.*same kv_heads and head_dim",
        ),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown preset 'gemma2b'.*'gemma_2b'"):
        presets.PRESETS.make("gemma2b")


@pytest.mark.eight_devices
def test_layout_keeps_too_few_kv_heads_whole_and_refuses_the_rest():
    layout = make_layout("tensor=4,fsdp=2")
    fitted = fit_layout(TINY, layout)  # 2 kv heads on 4 devices
    assert fitted.rules.kv_heads == () and fitted.rules.heads == ("tensor",)
    with pytest.raises(UserError, match=r"mlp_hidden=66 .* does not divide over 4"):
        fit_layout(dataclasses.replace(TINY, mlp_hidden=66), layout)


@pytest.mark.eight_devices
def test_layout_fits_the_shapes_of_every_layer():
    layout = make_layout("tensor=2,fsdp=4")
    one_kv_head = dataclasses.replace(TINY, pattern=(LayerSpec(), LayerSpec(kv_heads=1)))
    assert fit_layout(TINY, layout).rules.kv_heads == ("tensor",)
    assert fit_layout(one_kv_head, layout).rules.kv_heads == ()
    odd = dataclasses.replace(TINY, pattern=(LayerSpec(), LayerSpec(mlp_hidden=65)))
    with pytest.raises(UserError, match=r"mlp_hidden=65 \(of pattern_1\.gate\)"):
        fit_layout(odd, layout)


def test_what_does_not_decay_says_so():
    """Norms, biases and scales; everything that multiplies a vector of the residual stream does."""
    _, config = variants.apply(TINY, "learned_rope + qk_norm() + ss_max() + fox()")
    tree = parameter_tree(dataclasses.replace(config, layer_scalar=True))
    layer = tree["pattern_0"] | tree["shared"]
    undecayed = {name for name, parameter in layer.items() if not parameter.decay}
    norms = {"attention_norm", "mlp_norm", "q_norm", "k_norm"}
    assert undecayed == norms | {"ss_max_scale", "fox_bias", "rotary_log_scale", "layer_scalar"}
    assert tree["embedding"].decay and not tree["final_norm"].decay
