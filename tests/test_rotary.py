"""Encodings and the rotation against float64 and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_study import rotary
from rope_study.errors import UserError

HEAD_DIM = 64
ALL = {
    "rope": rotary.rope(),
    "rope_500k": rotary.rope(500_000),
    "nope": rotary.nope(),
    "p_rope": rotary.p_rope(0.75),
    "p_rope_quarter": rotary.p_rope(0.25, theta=500_000),
    "reversed": rotary.reversed_p_rope(0.75),
    "partial": rotary.partial_rope(0.75),
}


def rotate_float64(x, positions, inverse_frequencies):
    """Explicit 2 x 2 rotation of dims (i, i + d/2) in float64."""
    x, half = np.asarray(x, np.float64), x.shape[-1] // 2
    out = np.empty_like(x)
    for i, frequency in enumerate(inverse_frequencies):
        angle = np.asarray(positions, np.float64)[:, :, None] * frequency
        a, b = x[..., i], x[..., i + half]
        out[..., i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., i + half] = a * np.sin(angle) + b * np.cos(angle)
    return out


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", ALL)
def test_rotation_equals_float64_at_odd_positions_up_to_60001(name):
    positions = np.concatenate([np.arange(2049, 4097, 64), np.arange(4097, 60_002, 1808)])[None]
    positions = np.append(positions, [[60_001]], axis=1)
    assert (positions % 2 == 1).all()
    x = random((1, positions.shape[1], 2, HEAD_DIM))
    got = jax.jit(ALL[name])(x, jnp.asarray(positions))
    expected = rotate_float64(x, positions, ALL[name].inverse_frequencies(HEAD_DIM))
    # Rounding of x cos - y sin in f32; plain f32 phases would be off by 4e-3 here.
    np.testing.assert_allclose(got, expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("theta", [10_000, 500_000])
def test_phases_hold_at_a_million_tokens(theta):
    positions = np.arange(2**20 - 999, 2**20, 2)
    frequencies = rotary.rope(theta).inverse_frequencies(256)
    got = np.asarray(rotary.phases(jnp.asarray(positions), frequencies), np.float64)
    turned = np.exp(1j * got) - np.exp(1j * positions[:, None] * frequencies)
    assert np.abs(turned).max() < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_logits_depend_on_distance_only(name):
    q, k = random((1, 1, 1, HEAD_DIM), 1), random((1, 1, 1, HEAD_DIM), 2)

    def logit(i, j):
        return float(jnp.vdot(ALL[name](q, jnp.array([[i]])), ALL[name](k, jnp.array([[j]]))))

    for distance in (0, 1, 17, 1001):
        expected = logit(distance, 0)
        for shift in (1, 333, 40_001):
            assert logit(distance + shift, shift) == pytest.approx(expected, abs=2e-5)


def test_p_of_one_is_rope_and_p_of_zero_is_nope_bit_for_bit():
    x, positions = random((2, 33, 3, HEAD_DIM)), jnp.arange(33)[None]
    np.testing.assert_array_equal(rotary.p_rope(1.0)(x, positions), rotary.rope()(x, positions))
    np.testing.assert_array_equal(rotary.p_rope(0.0)(x, positions), rotary.nope()(x, positions))
    np.testing.assert_array_equal(rotary.nope()(x, positions), x)
    assert not np.array_equal(rotary.p_rope(0.97)(x, positions), rotary.rope()(x, positions))


def test_frequencies_follow_their_definitions():
    d = 8
    geometric = 10_000.0 ** (-np.array([0, 2, 4, 6]) / d)
    frequencies = lambda encoding: encoding.inverse_frequencies(d)  # noqa: E731
    np.testing.assert_allclose(frequencies(rotary.rope()), geometric, rtol=1e-15)
    np.testing.assert_allclose(frequencies(rotary.p_rope(0.75)), [*geometric[:3], 0], rtol=1e-15)
    np.testing.assert_allclose(
        frequencies(rotary.reversed_p_rope(0.75)), [0, *geometric[1:]], rtol=1e-15
    )
    squeezed = 10_000.0 ** (-np.array([0, 2, 4]) / 6)
    np.testing.assert_allclose(frequencies(rotary.partial_rope(0.75)), [*squeezed, 0], rtol=1e-15)


def test_bfloat16_is_rounded_once_at_the_end():
    x = random((1, 16, 2, HEAD_DIM)).astype(jnp.bfloat16)
    positions = jnp.arange(4001, 4033, 2)[None]
    got = rotary.rope()(x, positions)
    assert got.dtype == jnp.bfloat16
    expected = rotary.rope()(x.astype(jnp.float32), positions).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


def test_encodings_are_equal_by_their_arguments():
    """Compiled programs are kept by encoding: two that differ must not get each other's."""
    assert rotary.rope(10_000) == rotary.rope() != rotary.rope(20_000)
    assert hash(rotary.rope(10_000)) == hash(rotary.rope(10_000.0))
    assert rotary.p_rope(0.5) != rotary.reversed_p_rope(0.5)
    assert rotary.p_rope(0.5, factor=1) == rotary.p_rope(0.5)


def test_names_are_parsed_strictly():
    assert rotary.parse("p_rope(0.5, theta=500_000)") == rotary.p_rope(0.5, 500_000)
    for p in (0.75, 1 / 3, 0.123456789):  # a name keeps every digit: it is read back from files
        assert rotary.parse(rotary.p_rope(p).name) == rotary.p_rope(p)
    assert rotary.p_rope(0.123456789) != rotary.p_rope(0.123457)
    assert rotary.parse(" nope ") == rotary.nope()
    assert rotary.parse("rope()") == rotary.rope()
    assert rotary.parse("p_rope(0.5)") != rotary.p_rope(0.25)
    with pytest.raises(UserError, match=r"unknown encoding 'ropee'.*'rope'") as error:
        rotary.parse("ropee", "encodings")
    assert error.value.argument == "encodings"
    with pytest.raises(UserError, match=r"no parameter 'thta'.*'theta'"):
        rotary.parse("rope(thta=3)")
    with pytest.raises(UserError, match=r"p=1.5 must lie in \[0, 1\]"):
        rotary.parse("p_rope(1.5)")
    for spelling in ("rope(theta=open('x'))", "rope(", "__import__('os').system('x')", "1 + 1", ""):
        with pytest.raises(UserError, match="not understood"):
            rotary.parse(spelling)
    for spelling in ("rope('a')", "p_rope(None)", "p_rope(True)"):
        with pytest.raises(UserError, match="must be a finite number"):
            rotary.parse(spelling)
    with pytest.raises(UserError, match="too many"):
        rotary.parse("rope(1, 2, 3)")
    with pytest.raises(UserError, match="theta=0\\.5 must be"):
        rotary.parse("rope(0.5)")


def test_a_function_of_the_users_own_is_an_encoding():
    def half_speed(x, positions):
        return rotary.rotate(x, positions, rotary.rope().inverse_frequencies(x.shape[-1]) / 2)

    assert rotary.parse(half_speed) is half_speed
    assert rotary.parse("rope_study.rotary:rotate") is rotary.rotate
    assert rotary.parse(rotary.name_of(rotary.rotate)) is rotary.rotate
    with pytest.raises(UserError, match="cannot be imported"):
        rotary.parse("rope_study.rotary:no_such_function")


def test_odd_head_dim_is_refused():
    with pytest.raises(UserError, match="head_dim=63 cannot be split"):
        rotary.rope().inverse_frequencies(63)


def test_an_encoding_class_of_the_users_own_is_named_by_where_it_is(tmp_path, monkeypatch):
    """With its arguments, so that model.json reads it back without it being registered."""
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from rope_study import rotary\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Slowed(rotary.Encoding):\n"
        "    kind = 'slowed'\n"
        "    factor: float = 2.0\n"
        "    def inverse_frequencies(self, head_dim):\n"
        "        return rotary.rope().inverse_frequencies(head_dim) / self.factor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoding = rotary.parse("mine:Slowed(factor=4)")
    assert rotary.name_of(encoding) == "mine:Slowed(factor=4)"
    assert rotary.parse(rotary.name_of(encoding)) == encoding != rotary.parse("mine:Slowed")
    assert encoding.inverse_frequencies(64)[0] == 0.25
    with pytest.raises(UserError, match=r"no parameter 'fctor'.*'factor'"):
        rotary.parse("mine:Slowed(fctor=4)")
