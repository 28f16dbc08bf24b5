"""Encodings against the functions of Transformers themselves: frequencies and rotated vectors.

Frequencies agree within 1e-6 (measured: 3.2e-7 for Llama 3, 1.3e-7 for all others). Rotated vectors
agree within 1e-6 where Transformers' own phases do: it multiplies position and frequency in
float32, which is off by 6e-5 radians at position 1024 and 2e-3 at 32k. So vectors are compared up
to position 1024, with that much more allowed (measured: three quarters of it); positions up to a
million are compared with float64, in tests/test_encodings.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from rope_study import rotary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.gemma3 import modeling_gemma3  # noqa: E402
from transformers.models.gemma4 import modeling_gemma4  # noqa: E402
from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.models.phi3 import modeling_phi3  # noqa: E402

POSITIONS = np.array([0, 1, 2, 17, 333, 1023, 1024])
SHORT = [1.0 + k / 64 for k in range(32)]
LONG = [1.0 + k for k in range(32)]


def llama(head_dim, maximum, **rope_parameters):
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=maximum,
        rope_parameters=rope_parameters,
    )


# (Transformers' rope_parameters with head_dim, longest and current length; our encoding).
CASES = {
    "linear": (
        (256, 32_768, None, {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}),
        rotary.linear_rope(8, 1e6),
    ),
    "linear_partial": (
        (
            128,
            2048,
            None,
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
            | {"partial_rotary_factor": 0.25},
        ),
        rotary.linear_rope(4, 1e4, partial=0.25),
    ),
    "dynamic_beyond": (
        (128, 2048, 10_000, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        rotary.dynamic_ntk_rope(2, 2048, 10_000),
    ),
    "dynamic_within": (
        (128, 2048, 1000, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        rotary.dynamic_ntk_rope(2, 2048, 1000),
    ),
    "dynamic_partial": (
        (
            128,
            2048,
            4096,
            {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
            | {"partial_rotary_factor": 0.5},
        ),
        rotary.dynamic_ntk_rope(4, 2048, 4096, partial=0.5),
    ),
    "yarn_qwen": (
        (
            128,
            131_072,
            None,
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
            | {"original_max_position_embeddings": 32_768},
        ),
        rotary.yarn_rope(4, 32_768, 1e6),
    ),
    "yarn_gpt_oss": (
        (
            64,
            131_072,
            None,
            {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0}
            | {"original_max_position_embeddings": 4096, "truncate": False},
        ),
        rotary.yarn_rope(32, 4096, 150_000, truncate=False),
    ),
    "yarn_deepseek": (
        (
            64,
            163_840,
            None,
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0}
            | {"original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.0},
        ),
        rotary.yarn_rope(40, 4096, mscale=0.7, mscale_all_dim=1.0),
    ),
    "yarn_given_factors": (
        (
            64,
            16_384,
            None,
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}
            | {"original_max_position_embeddings": 2048, "attention_factor": 1.5}
            | {"beta_fast": 16.0, "beta_slow": 2.0, "partial_rotary_factor": 0.5},
        ),
        rotary.yarn_rope(8, 2048, beta_fast=16, beta_slow=2, attention_factor=1.5, partial=0.5),
    ),
    "longrope_short": (
        (
            64,
            131_072,
            4096,
            {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0}
            | {"short_factor": SHORT, "long_factor": LONG}
            | {"original_max_position_embeddings": 4096},
        ),
        rotary.longrope(tuple(SHORT), tuple(LONG), 4096, 4096, 32),
    ),
    "longrope_long": (
        (
            64,
            131_072,
            4097,
            {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0}
            | {"short_factor": SHORT, "long_factor": LONG}
            | {"original_max_position_embeddings": 4096},
        ),
        rotary.longrope(tuple(SHORT), tuple(LONG), 4096, 4097, 32),
    ),
    "longrope_partial": (
        (
            128,
            131_072,
            9000,
            {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0}
            | {"short_factor": SHORT, "long_factor": LONG, "partial_rotary_factor": 0.5}
            | {"original_max_position_embeddings": 4096},
        ),
        rotary.longrope(tuple(SHORT), tuple(LONG), 4096, 9000, 32, partial=0.5),
    ),
    "llama31": (
        (
            128,
            131_072,
            None,
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
            | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 8192},
        ),
        rotary.llama3_rope(),
    ),
    "llama32_1b": (
        (
            64,
            131_072,
            None,
            {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0}
            | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            | {"original_max_position_embeddings": 8192},
        ),
        rotary.llama3_rope(32),
    ),
    "proportional": (
        (
            512,
            131_072,
            None,
            {"rope_type": "proportional", "rope_theta": 1e6} | {"partial_rotary_factor": 0.25},
        ),
        rotary.p_rope(0.25, 1e6),
    ),
    "proportional_factor": (
        (
            256,
            131_072,
            None,
            {"rope_type": "proportional", "rope_theta": 1e4, "factor": 4.0}
            | {"partial_rotary_factor": 0.75},
        ),
        rotary.p_rope(0.75, 1e4, factor=4),
    ),
}


def theirs(case):
    """(frequencies float32[r/2], attention factor) of Transformers, r the rotated width."""
    head_dim, maximum, length, values = case
    config = llama(head_dim, maximum, **values)
    inverse, factor = ROPE_INIT_FUNCTIONS[values["rope_type"]](config, "cpu", seq_len=length)
    return inverse.numpy(), float(factor)


def test_every_rope_type_of_transformers_is_compared():
    assert set(ROPE_INIT_FUNCTIONS) == {case[3]["rope_type"] for case, _ in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_attention_factors_are_those_of_transformers(name):
    case, encoding = CASES[name]
    expected, factor = theirs(case)
    got = encoding.inverse_frequencies(case[0])
    np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-6, atol=0)
    assert (got[len(expected) :] == 0).all()
    assert encoding.scaling == pytest.approx(factor, rel=1e-12)


# --- rotated vectors through the models' own modules ------------------------------------------


def vectors(head_dim):
    """q[1, T, 2, H] and k[1, T, 2, H], normal."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 1, len(POSITIONS), 2, head_dim), np.float32)


def module_tables(module, **layer_type):
    """cos and sin [1, T, r] that a rotary module gives at POSITIONS."""
    positions = torch.tensor(POSITIONS)[None]
    return module(torch.zeros(1), positions, **layer_type)


def assert_rotated_alike(encoding, x, expected):
    """Within 1e-6 of the largest value, and what their float32 phases are off: position * 2^-24."""
    got = np.asarray(encoding(jnp.asarray(x), jnp.asarray(POSITIONS)[None]))
    size = np.abs(x).max() * encoding.scaling
    allowed = size * (1e-6 + POSITIONS * 2.0**-24)
    error = np.abs(got - expected).max(axis=(0, 2, 3))
    assert (error <= allowed).all(), (error, allowed)
    assert np.abs(got - x).max() > 0.5  # something turned


def to_torch(x):
    return torch.tensor(np.asarray(x)).transpose(1, 2)  # [B, N, T, H]


def to_numpy(x):
    return x.transpose(1, 2).numpy()


# Llama has no partial rotation, and its module reads the length off the positions: 1025 here.
BEYOND = ("dynamic_beyond", "longrope_long")
LLAMA_CASES = [
    name
    for name, ((*_, values), _) in CASES.items()
    if name not in BEYOND
    and (values["rope_type"] == "proportional" or "partial_rotary_factor" not in values)
]


@pytest.mark.parametrize("name", ["default", *LLAMA_CASES])
def test_llama_rotates_alike(name):
    if name == "default":
        case = (128, 8192, None, {"rope_type": "default", "rope_theta": 5e5})
        encoding = rotary.rope(5e5)
    else:
        case, encoding = CASES[name]
    head_dim, maximum, _, values = case
    module = modeling_llama.LlamaRotaryEmbedding(llama(head_dim, maximum, **values))
    cos, sin = module_tables(module)
    for x in vectors(head_dim):
        rotated, _ = modeling_llama.apply_rotary_pos_emb(to_torch(x), to_torch(x), cos, sin)
        assert_rotated_alike(encoding, x, to_numpy(rotated))


GEMMA3 = {
    "sliding_attention": rotary.rope(10_000),
    "full_attention": rotary.linear_rope(8, 1e6),
}


@pytest.mark.parametrize("layer_type", GEMMA3)
def test_gemma3_rotates_alike_in_each_layer_type(layer_type):
    config = Gemma3TextConfig(
        head_dim=256,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    )
    module = modeling_gemma3.Gemma3RotaryEmbedding(config)
    encoding = GEMMA3[layer_type]
    np.testing.assert_allclose(
        encoding.inverse_frequencies(256), getattr(module, f"{layer_type}_inv_freq"), rtol=1e-6
    )
    cos, sin = module_tables(module, layer_type=layer_type)
    for x in vectors(256):
        rotated, _ = modeling_gemma3.apply_rotary_pos_emb(to_torch(x), to_torch(x), cos, sin)
        assert_rotated_alike(encoding, x, to_numpy(rotated))


GEMMA4 = {  # head_dim and rotary differ by layer type
    "sliding_attention": (256, rotary.rope(10_000)),
    "full_attention": (512, rotary.p_rope(0.25, 1e6)),
}


@pytest.mark.parametrize("layer_type", GEMMA4)
def test_gemma4_rotates_alike_in_each_layer_type(layer_type):
    """Its defaults: these are the parameters of the released models."""
    module = modeling_gemma4.Gemma4TextRotaryEmbedding(Gemma4TextConfig())
    head_dim, encoding = GEMMA4[layer_type]
    inverse = getattr(module, f"{layer_type}_inv_freq")
    np.testing.assert_allclose(encoding.inverse_frequencies(head_dim), inverse, rtol=1e-6)
    if layer_type == "full_attention":
        assert encoding.inverse_frequencies(head_dim).nonzero()[0].size == 64
    cos, sin = module_tables(module, layer_type=layer_type)
    for x in vectors(head_dim):
        rotated = modeling_gemma4.apply_rotary_pos_emb(to_torch(x), cos, sin)
        assert_rotated_alike(encoding, x, to_numpy(rotated))


def neox_to_ours(x, rotated):
    """NeoX pairs i with i + r/2 inside its first r dims; ours across the head, rest behind."""
    turning, rest = x[..., :rotated], x[..., rotated:]
    (a, b), (c, d) = np.split(turning, 2, axis=-1), np.split(rest, 2, axis=-1)
    return np.concatenate([a, c, b, d], axis=-1)


@pytest.mark.parametrize("scaling", ["default", "linear"])
def test_gpt_neox_rotates_alike(scaling):
    values = {"rope_type": scaling, "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    encoding = rotary.partial_rope(0.25)
    if scaling == "linear":
        values["factor"] = 2.0
        encoding = rotary.linear_rope(2, partial=0.25)
    config = GPTNeoXConfig(hidden_size=384, num_attention_heads=4, rope_parameters=values)
    module = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)
    np.testing.assert_allclose(encoding.inverse_frequencies(96)[:12], module.inv_freq, rtol=1e-6)
    cos, sin = module_tables(module)
    for x in vectors(96):
        rotated, _ = modeling_gpt_neox.apply_rotary_pos_emb(to_torch(x), to_torch(x), cos, sin)
        assert_rotated_alike(encoding, neox_to_ours(x, 24), neox_to_ours(to_numpy(rotated), 24))


@pytest.mark.parametrize("partial", [1.0, 0.5], ids=["phi3", "phi4_mini"])
@pytest.mark.parametrize("longest", [1024, 5000])
def test_phi_rotates_alike_on_both_sides_of_its_trained_length(longest, partial):
    """The list changes for all positions; dimensions that do not turn are not scaled either."""
    head_dim = int(64 / partial)
    values = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": partial}
    values |= {"short_factor": SHORT, "long_factor": LONG}
    values |= {"original_max_position_embeddings": 4096}
    config = Phi3Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131_072,
        original_max_position_embeddings=4096,
        rope_parameters=values,
        pad_token_id=0,
    )
    module = modeling_phi3.Phi3RotaryEmbedding(config)
    encoding = rotary.longrope(tuple(SHORT), tuple(LONG), 4096, longest + 1, 32, partial=partial)
    positions = torch.tensor([*POSITIONS, longest])[None]
    cos, sin = (table[:, :-1] for table in module(torch.zeros(1), positions))
    for x in vectors(head_dim):
        rotated, _ = modeling_phi3.apply_rotary_pos_emb(to_torch(x), to_torch(x), cos, sin)
        assert_rotated_alike(encoding, neox_to_ours(x, 64), neox_to_ours(to_numpy(rotated), 64))


@pytest.mark.parametrize("longest", [1024, 9000])
def test_dynamic_ntk_of_llama_rotates_alike_at_either_length(longest):
    values = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    module = modeling_llama.LlamaRotaryEmbedding(llama(128, 2048, **values))
    encoding = rotary.dynamic_ntk_rope(2, 2048, longest + 1)
    positions = torch.tensor([*POSITIONS, longest])[None]
    cos, sin = (table[:, :-1] for table in module(torch.zeros(1), positions))
    for x in vectors(128):
        rotated, _ = modeling_llama.apply_rotary_pos_emb(to_torch(x), to_torch(x), cos, sin)
        assert_rotated_alike(encoding, x, to_numpy(rotated))


def test_fope_coefficients_have_the_deviation_of_torch():
    """The released code draws them with torch.nn.init.xavier_normal_ on [heads, D, M]."""
    from rope_study.rotary import fope

    for heads in (1, 8):
        noise = fope(2048, sigma=0.3, heads=heads).mixtures(64) - np.eye(21)
        shape = (21, 21) if heads == 1 else (heads, 21, 21)
        torch.manual_seed(0)
        drawn = [torch.nn.init.xavier_normal_(torch.empty(shape), gain=0.3) for _ in range(64)]
        assert noise.std() == pytest.approx(float(torch.stack(drawn).std()), rel=0.05)
