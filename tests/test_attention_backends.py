"""Attention backends: the TPU kernel against the reference, and which of them is chosen where.

The kernel runs as plain JAX here (Pallas's interpret mode). That it compiles for TPUs and is chosen
there is seen in the program that is lowered for one, which needs no TPU.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from rope_study import sharding
from rope_study.decoder import Decoder, LayerSpec, attention, fit_layout, presets
from rope_study.decoder.attention import backends, cudnn, splash
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS, Alibi, SoftCap
from rope_study.decoder.config import ATTENTION
from rope_study.decoder.query_scaling import SSMax
from rope_study.decoder.sampling import generate_tokens
from rope_study.errors import UserError
from rope_study.sharding import MESH_AXES, Layout, Rules

BF16 = dataclasses.replace(presets.tiny(), compute_dtype="bfloat16", head_dim=64)


class Device:
    """As much of a jax.Device as the choice looks at."""

    def __init__(self, platform, compute_capability=""):
        self.platform, self.compute_capability = platform, compute_capability


TPU, HOPPER, AMPERE = Device("tpu"), Device("gpu", "9.0"), Device("gpu", "8.0")
AMD, CPU = Device("gpu", "gfx942"), Device("cpu")


def on(device):
    """A layout of one such device; meshes take anything."""
    return Layout(Mesh(np.array(device).reshape([1] * len(MESH_AXES)), MESH_AXES))


# --- the kernel against the reference ---------------------------------------------------------


def values_and_gradients(attend, q, k, v, g):
    """[B, T, N, H] and the gradients of its sum weighted by g."""
    return jax.jit(lambda *a: (lambda out, pull: (out, *pull(g)))(*jax.vjp(attend, *a)))(q, k, v)


def check(shape, kv_heads, tolerance=1e-5, layout=None, dtype=jnp.float32, **options):
    """Values and gradients of the kernel and of the reference, by their largest."""
    keys = jax.random.split(jax.random.key(0), 4)
    B, T, _, H = shape
    q, g = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, T, kv_heads, H), dtype) for key in keys[2:])
    # Capped logits show only where they are large.
    q = 20 * q if "cap" in options else q
    kernel = functools.partial(splash.attend, layout=layout, interpret=True, **options)
    got = values_and_gradients(kernel, q, k, v, g)
    expected = values_and_gradients(functools.partial(reference, **options), q, k, v, g)
    for name, mine, theirs in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
        mine, theirs = (np.asarray(a, np.float32) for a in (mine, theirs))
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert error < tolerance, f"{name}: {error:.1e}"


def reference(q, k, v, window=None, chunk=None, cap=None, documents=None):
    def capped(logits, mask, queries):
        return SoftCap(cap).weights(logits, mask, None)  # type: ignore[arg-type]

    softmax = capped if cap else None
    return attention.attend(q, k, v, window, chunk, softmax, documents=documents)


def apart(rows, length):
    """Three documents in a row, not of the same lengths in each."""
    return np.cumsum(np.arange(length) % (length // 2 - 7 * np.arange(rows)[:, None]) == 0, axis=1)


@pytest.mark.parametrize(
    "shape, kv_heads, options",
    [
        ((1, 256, 2, 64), 1, {}),
        ((1, 256, 4, 128), 2, {"window": 100}),
        ((1, 256, 2, 256), 2, {"cap": 5.0}),
        ((2, 200, 2, 32), 1, {"chunk": 60}),
        ((1, 300, 2, 64), 2, {"window": 70, "chunk": 128, "cap": 5.0}),
        ((2, 300, 2, 64), 1, {"documents": apart(2, 300)}),
        ((2, 256, 4, 64), 2, {"documents": apart(2, 256), "window": 100, "cap": 5.0}),
    ],
    ids=[
        "mqa",
        "gqa window",
        "mha cap",
        "uneven length, chunk",
        "all",
        "documents",
        "documents, window",
    ],
)
def test_the_kernel_is_the_reference(shape, kv_heads, options, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)  # so that there are several
    check(shape, kv_heads, **options)


def test_the_kernel_in_bf16_is_the_reference_within_rounding():
    check((1, 128, 2, 64), 1, tolerance=2e-2, dtype=jnp.bfloat16)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "mesh, rules, shape, kv_heads",
    [
        ("data=2,fsdp=2,tensor=2", {}, (4, 128, 4, 64), 2),
        ("fsdp=2,tensor=4", {}, (2, 128, 8, 64), 2),  # a device reads one of two key heads
        ("fsdp=2,tensor=4", {}, (2, 128, 6, 64), 1),  # heads do not divide
        ("fsdp=8", {}, (1, 128, 2, 64), 1),  # rows neither
        ("data=4,fsdp=2", {"batch": "fsdp", "length": "data"}, (2, 512, 2, 64), 1),
    ],
    ids=["rows and heads", "key heads whole", "heads whole", "one row", "length"],
)
def test_devices_share_the_kernel(mesh, rules, shape, kv_heads):
    check(shape, kv_heads, layout=sharding.make_layout(mesh, Rules(**rules)), window=100)


@pytest.mark.eight_devices
def test_each_device_has_its_own_heads_and_rows():
    """Of the program: nothing is gathered where keys divide, and nobody computes for another."""
    layout = sharding.make_layout("fsdp=2,tensor=4")
    split = layout.sharding("batch", None, "heads", None)
    q = jax.ShapeDtypeStruct((2, 128, 8, 64), jnp.float32, sharding=split)
    attend = functools.partial(splash.attend, layout=layout, interpret=True)
    text = jax.jit(attend).lower(q, q, q).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "mesh, heads, kv_heads, of_device",
    [
        ("data=2,fsdp=2,tensor=2", 4, 1, (1, 32, 2, 1)),
        ("fsdp=4,tensor=2", 4, 2, (1, 32, 2, 1)),
        ("fsdp=2,context=2,tensor=2", 8, 2, (2, 32, 2, 1)),
        ("fsdp=2,context=4", 4, 4, (2, 32, 1, 1)),
        ("fsdp=2,context=4", 6, 1, (2, 32, 6, 1)),  # heads do not divide
    ],
    ids=["one key head", "own key heads", "length and heads", "length", "heads whole"],
)
def test_cudnn_is_given_whole_texts_and_a_devices_own_heads(
    mesh, heads, kv_heads, of_device, monkeypatch
):
    """In place of the kernel the reference runs, on the shapes that the kernel would be given."""
    shapes = set()

    def kernel(q, k, v, window):
        shapes.add((*q.shape[:3], k.shape[2]))
        return reference(q, k, v, window)

    monkeypatch.setattr(cudnn, "_whole", kernel)
    layout = sharding.make_layout(mesh)
    q, g, k, v = (
        jax.random.normal(key, (4, 32, n, 16))
        for key, n in zip(
            jax.random.split(jax.random.key(0), 4), [heads] * 2 + [kv_heads] * 2, strict=True
        )
    )
    attend = functools.partial(cudnn.attend, window=10, layout=layout)
    got = values_and_gradients(attend, q, k, v, g)
    expected = values_and_gradients(functools.partial(reference, window=10), q, k, v, g)
    assert shapes == {of_device}
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("length", [1, 128, 129, 512, 513, 5000, 8192])
def test_blocks_fill_little(length):
    block = splash._block(length)
    filled = -(-length // block) * block
    assert block % 128 == 0 and block <= splash.BLOCK
    assert filled - length < 128 * max(1, filled // block)


@pytest.mark.parametrize("window, chunk", [(None, None), (5, None), (None, 12), (20, 16)])
def test_masks_know_their_blocks(window, chunk):
    mask = splash._Mask(64, window, chunk)
    whole = attention.causal_mask(64, None, window, chunk)
    blocks = [slice(i, i + 8) for i in range(0, 64, 8)]
    np.testing.assert_array_equal(np.block([[mask[t, s] for s in blocks] for t in blocks]), whole)


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, change, spec, backend, reason",
    [
        (TPU, {}, LayerSpec(window=8, chunk=4), "splash", "fast one for platform 'tpu'"),
        (TPU, {"compute_dtype": "float32"}, LayerSpec(), "splash", ""),
        (TPU, {}, LayerSpec(score_function=SoftCap()), "splash", ""),
        (TPU, {}, LayerSpec(score_function=Alibi()), "reference", r"not splash: .* no alibi\(\)"),
        (HOPPER, {"head_dim": 256}, LayerSpec(window=8, query_scale=SSMax()), "cudnn", ""),
        (HOPPER, {}, LayerSpec(chunk=4), "reference", "no chunks"),
        (HOPPER, {}, LayerSpec(score_function=SoftCap()), "reference", r"no soft_cap"),
        (HOPPER, {"compute_dtype": "float32"}, LayerSpec(), "reference", "needs compute_dtype"),
        (HOPPER, {"head_dim": 12}, LayerSpec(), "reference", "multiple of 8 up to 256, not 12"),
        (HOPPER, {}, LayerSpec(head_dim=512), "reference", "up to 256, not 512"),
        (AMPERE, {"head_dim": 256}, LayerSpec(), "reference", "up to 128, not 256"),
        (AMD, {}, LayerSpec(), "reference", "needs an NVIDIA GPU"),
        (CPU, {}, LayerSpec(), "reference", "'cpu'"),
        (None, {}, LayerSpec(), "reference", "without a layout"),
    ],
)  # fmt: skip
def test_auto_takes_the_best_that_can_run_the_layer(device, change, spec, backend, reason):
    layout = None if device is None else on(device)
    choice = attention.choose(dataclasses.replace(BF16, **change), spec, layout)
    assert choice.backend == backend and re.search(reason, choice.reason)


@pytest.mark.parametrize(
    "name, device, spec, message",
    [
        ("splash", CPU, LayerSpec(), "needs a TPU, .* 'cpu'; 'reference' does"),
        ("cudnn", TPU, LayerSpec(), "needs a GPU, .* 'tpu'; 'splash' does"),
        ("splash", TPU, LayerSpec(score_function=Alibi()), r"no alibi\(\); 'reference' does"),
        ("cudnn", HOPPER, LayerSpec(chunk=4), "no chunks; 'reference' does"),
        ("splash", None, LayerSpec(), "needs a TPU, .* 'cpu'; 'reference' does"),
    ],
)
def test_a_backend_that_cannot_is_refused_with_one_that_can(name, device, spec, message):
    config = dataclasses.replace(BF16, attention=name, pattern=(spec,))
    with pytest.raises(UserError, match=message) as error:
        attention.choose(config, spec, None if device is None else on(device))
    assert error.value.argument == "attention"
    if device:
        with pytest.raises(UserError, match=message):
            fit_layout(config, on(device))


def test_a_model_says_which_backends_run():
    pattern = (LayerSpec(), LayerSpec(score_function=Alibi()), LayerSpec(window=4))
    said = attention.in_words(dataclasses.replace(BF16, pattern=pattern), on(TPU))
    assert said == (
        "splash attention (the fast one for platform 'tpu'),"
        " reference attention (not splash: it has no alibi())"
    )


def test_every_backend_is_known_to_the_configuration():
    assert sorted(ATTENTION) == sorted(["auto", "reference", *backends.FAST.values()])
    for function in SCORE_FUNCTIONS.values():
        assert set(function.backends) <= set(ATTENTION) - {"auto"}


# --- in the decoder ---------------------------------------------------------------------------


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """Chooses as on a TPU."""
    choose = attention.choose
    monkeypatch.setattr(backends, "choose", lambda config, spec, _: choose(config, spec, on(TPU)))


def test_a_training_step_for_a_tpu_has_the_kernel(as_on_a_tpu):
    """Forward and backward, of every kind of layer."""
    specs = (LayerSpec(window=100), LayerSpec(chunk=128), LayerSpec(score_function=SoftCap()))
    decoder = Decoder(dataclasses.replace(BF16, layers=3, pattern=specs), sharding.one_device())
    tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]

    def loss(params, tokens):
        return decoder.apply({"params": params}, tokens, tokens, method="loss")

    lowered = jax.jit(jax.grad(loss)).trace(params, tokens).lower(lowering_platforms=("tpu",))
    kernels = re.findall(r'tpu_custom_call.*?kernel_name = "(\w+)"', lowered.as_text())
    names = "splash_mha_fwd_residuals", "splash_mha_dq_no_residuals", "splash_mha_dkv_no_residuals"
    assert set(kernels) == set(names)


def test_products_of_f32_are_asked_for_in_f32():
    """Forward and backward: by default a TPU would round what it multiplies to bf16."""
    array = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.float32)
    sums = lambda *inputs: splash.attend(*inputs).sum()  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(sums, argnums=(0, 1, 2)))(array, array, array))
    assert program.count("Precision.HIGHEST, Precision.HIGHEST") == program.count("dot_general")
    assert program.count("dot_general") >= 9


def test_generation_reads_prompts_by_the_kernel(as_on_a_tpu, monkeypatch):
    """And the tokens that follow by the reference, which alone knows a cache."""
    lengths, attend = [], splash.attend

    def kernel(q, *args, **more):
        lengths.append(q.shape[1])
        return attend(q, *args, **more, interpret=True)

    monkeypatch.setattr(splash, "attend", kernel)
    decoder = Decoder(dataclasses.replace(presets.tiny(), layers=1), sharding.one_device())
    prompts = np.arange(24).reshape(2, 12)
    params = decoder.init(jax.random.key(0), prompts)["params"]
    lengths.clear()
    fast = generate_tokens(decoder, params, prompts, tokens=4)
    assert set(lengths) == {12, 16}, "the prompt, and the shapes of a cache for all"
    plain = Decoder(dataclasses.replace(decoder.config, attention="reference"), decoder.layout)
    monkeypatch.undo()
    np.testing.assert_array_equal(fast, generate_tokens(plain, params, prompts, tokens=4))
