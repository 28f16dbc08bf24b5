"""llama2.c models as decoders: logits equal a float64 statement of its forward pass."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from rope_study import checkpoints

SIZES = D, F, L, N, K, V, T = 16, 24, 3, 4, 2, 20, 8
H = D // N


def write(path, shared=True, sizes=SIZES):
    """A random model; returns its arrays."""
    random = np.random.default_rng(0)
    D, F, L, N, K, V, T = sizes
    H = D // N
    shapes = {
        "token_embedding": (V, D), "rms_att": (L, D), "wq": (L, D, D), "wk": (L, K * H, D),
        "wv": (L, K * H, D), "wo": (L, D, D), "rms_ffn": (L, D), "w1": (L, F, D), "w2": (L, D, F),
        "w3": (L, F, D), "rms_final": (D,), "cos": (T, H // 2), "sin": (T, H // 2),
    }  # fmt: skip
    shapes |= {} if shared else {"wcls": (V, D)}
    arrays = {name: random.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", D, F, L, N, K, V if shared else -V, T)
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays.values()))
    return arrays


def stated_logits(a, tokens):
    """float64 [t, V]: the forward pass of llama2.c, its pairs (0, 1), (2, 3)... and all."""
    a = {name: value.astype(np.float64) for name, value in a.items()}
    norm = lambda x, w: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * w  # noqa: E731
    t = len(tokens)
    angles = np.arange(t)[:, None] * 10_000.0 ** (-np.arange(0, H, 2) / H)

    def turn(x):  # [t, heads, H]
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)

    x = a["token_embedding"][tokens]
    for i in range(L):
        h = norm(x, a["rms_att"][i])
        q, k, v = ((h @ a[w][i].T).reshape(t, n, H) for w, n in (("wq", N), ("wk", K), ("wv", K)))
        q, k = turn(q), np.repeat(turn(k), N // K, axis=1)
        logits = np.einsum("inh,jnh->nij", q, k) / np.sqrt(H)
        logits[:, np.triu_indices(t, 1)[0], np.triu_indices(t, 1)[1]] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("nij,jnh->inh", weights, np.repeat(v, N // K, axis=1))
        x = x + mixed.reshape(t, D) @ a["wo"][i].T
        h = norm(x, a["rms_ffn"][i])
        gate = h @ a["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ a["w3"][i].T)) @ a["w2"][i].T
    return norm(x, a["rms_final"]) @ a.get("wcls", a["token_embedding"]).T


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_file_gives_the_logits_of_its_formula(shared, tmp_path):
    arrays = write(tmp_path / "model.bin", shared)
    decoder, params = checkpoints.load(tmp_path / "model.bin")
    tokens = np.array([1, 7, 3, 19, 0, 7, 2])
    got = decoder.apply({"params": params}, jnp.tile(tokens, (8, 1)))[0][0]
    np.testing.assert_allclose(got, stated_logits(arrays, tokens), atol=2e-4)
