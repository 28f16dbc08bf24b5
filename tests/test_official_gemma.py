"""Official Gemma checkpoints, against tiny ones that Google's own package wrote."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rope_study import checkpoints
from rope_study.checkpoints.gemma_orbax import OrbaxTree, gemma, is_orbax
from rope_study.decoder.query_scaling import LogitScale
from rope_study.errors import UserError

DATA = Path(__file__).parent / "data" / "official_gemma"
NAMES = ("gemma1_mqa", "gemma1_mha", "gemma2", "gemma3", "gemma3_large")
GENERATION = {"gemma1_mqa": 1, "gemma1_mha": 1, "gemma2": 2, "gemma3": 3, "gemma3_large": 3}


def peer(name):
    """tokens int[1, 24], logits f32[1, 24, V] and the peer's configuration."""
    with np.load(DATA / name / "peer.npz") as file:
        return file["tokens"], file["logits"], json.loads(str(file["config"]))


def saved(name):
    """Every array by its flat name, restored by plain Orbax."""
    (folder,) = (path for path in (DATA / name).iterdir() if path.is_dir())
    restored = ocp.PyTreeCheckpointer().restore(folder)
    flat = {}
    for place, array in jax.tree_util.tree_leaves_with_path(restored):
        key = "/".join(key.key for key in place).removeprefix("transformer/")
        bare = key.endswith(("/gating_einsum", "/linear"))
        flat[key + "/w" if bare else key] = np.asarray(array)
    return flat


def write(folder, tree, **options):
    handler = ocp.PyTreeCheckpointHandler(**options)
    ocp.Checkpointer(handler).save(folder, jax.tree.map(jnp.asarray, tree))


def nest(flat):
    """{"a/b": x} -> {"a": {"b": x}}."""
    nested = {}
    for name, array in flat.items():
        *above, last = name.split("/")
        inner = nested
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = array
    return nested


def decoder_config(name):
    """By the peer's own configuration: sizes this small were never released."""
    config = peer(name)[2]
    return gemma.decoder_config(
        GENERATION[name],
        gemma.infer_shapes(OrbaxTree(DATA / name)),
        window=config["sliding_window_size"],
        factor=config["global_scale_factor"] or 1.0,
        query_scale=config["query_scale"],
        caps=(config["attn_logits_soft_cap"], config["final_logit_softcap"]),
    )


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_the_peers(name):
    tree, config = OrbaxTree(DATA / name), peer(name)[2]
    assert gemma.generation(tree) == GENERATION[name]
    assert gemma.infer_shapes(tree) == {
        "vocab_size": config["num_embed"],
        "d_model": config["embed_dim"],
        "layers": len(config["attention_types"]),
        "heads": config["num_heads"],
        "kv_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "mlp_hidden": config["hidden_dim"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_reads_what_was_saved(name):
    tree, expected = OrbaxTree(DATA / name), saved(name)
    assert set(tree.names) == set(expected)
    for key in tree.names:
        array = tree.read(key)
        assert isinstance(array, np.ndarray)
        assert tree.shape(key) == array.shape and tree.dtype(key) == array.dtype
        np.testing.assert_array_equal(array, expected[key], key)


@pytest.mark.parametrize("name", NAMES)
def test_loaded_models_have_the_peers_logits(name):
    """Fused and split projections, both orders of gating, caps, windows, two bases, factor 8."""
    decoder, params = checkpoints.load(DATA / name, config=decoder_config(name))
    tokens, logits, _ = peer(name)
    ours = decoder.apply({"params": params}, jnp.tile(tokens, (8, 1)))[0]
    np.testing.assert_allclose(ours[:1], logits, rtol=0, atol=2e-5)


def test_released_sizes_are_known_and_others_say_what_to_give():
    with pytest.raises(UserError, match=r"Gemma 2 of width 16.*never released.*config="):
        checkpoints.load(DATA / "gemma2")
    wrong_config = dataclasses.replace(decoder_config("gemma2"), mlp_hidden=48)
    with pytest.raises(UserError, match=r"mlp_hidden=\d+, and config 48"):
        checkpoints.load(DATA / "gemma2", config=wrong_config)


@pytest.mark.parametrize("key", gemma.RELEASED)
def test_released_configurations(key, monkeypatch):
    """Width, layers and head_dim of the released sizes; the scale of queries by its rule."""
    generation, width, layers = key
    heads, head_dim = {4608: (32, 128), 5376: (32, 128)}.get(width, (8, 256))
    shapes = {
        "vocab_size": 256, "d_model": width, "layers": layers, "heads": heads, "kv_heads": heads,
        "head_dim": head_dim, "mlp_hidden": 8,
    }  # fmt: skip
    monkeypatch.setattr(gemma, "generation", lambda _: generation)
    monkeypatch.setattr(gemma, "infer_shapes", lambda _: shapes)
    config = gemma.released_config(None)
    assert config.layers == layers and config.final_cap == (30.0 if generation == 2 else None)
    scales = {spec.query_scale for spec in config.pattern}
    expected = {4608: LogitScale(144**-0.5), 5376: LogitScale(168**-0.5)}.get(width)
    assert scales == {expected}
    assert len(config.pattern) == {1: 1, 2: 2, 3: 6}[generation]


@pytest.mark.parametrize("form", ["nested", "flat", "wrapped", "training state", "zarr", "bf16"])
def test_all_forms_read_the_same(form, tmp_path):
    official = saved("gemma3")
    nested = nest(official)
    for i in range(7):
        mlp = nested[f"layer_{i}"]["mlp"]
        nested[f"layer_{i}"]["mlp"] = {key: value["w"] for key, value in mlp.items()}
    flat = {}
    for key, array in official.items():
        place, _, last = key.rpartition("/")
        flat.setdefault(f"transformer/{place}", {})[last] = array
    state = {"params": nested, "opt_state": {"mu": nested}, "step": np.int32(3), "collections": {}}
    write(
        tmp_path / "checkpoint",
        {
            "nested": nested,
            "flat": flat,
            "wrapped": {"params": {"transformer": nested}},
            "training state": state,
            "zarr": flat,
            "bf16": jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), flat),
        }[form],
        use_ocdbt=form != "zarr",
    )
    tree = OrbaxTree(tmp_path)
    assert set(tree.names) == set(official)
    assert gemma.infer_shapes(tree)["layers"] == 7
    for key in tree.names:
        exact = jnp.asarray(official[key], jnp.bfloat16) if form == "bf16" else official[key]
        np.testing.assert_array_equal(tree.read(key), np.asarray(exact), key)


def test_reads_no_other_array(tmp_path):
    """With every other array's data gone, one can still be read."""
    folder = tmp_path / "zarr"
    write(folder, nest(saved("gemma2")), use_ocdbt=False)
    tree = OrbaxTree(folder)
    kept_key = "layer_1/attn/kv_einsum/w"
    for key in set(tree.names) - {kept_key}:
        shutil.rmtree(folder / key.replace("/", "."))
    np.testing.assert_array_equal(tree.read(kept_key), saved("gemma2")[kept_key])
    with pytest.raises(UserError, match="layer_0/mlp/linear/w cannot be read"):
        tree.read("layer_0/mlp/linear/w")


@pytest.mark.eight_devices
def test_loads_into_shardings():
    config = decoder_config("gemma3_large")
    _, expected = checkpoints.load(DATA / "gemma3_large", config=config, mesh="data=8")
    _, params = checkpoints.load(DATA / "gemma3_large", config=config, mesh="fsdp=4,tensor=2")
    q = params["pattern_0"]["q"]
    assert tuple(q.sharding.spec) == (None, ("fsdp", "context"), "tensor", None)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_images_and_audio_are_left_out(tmp_path):
    vector = np.ones(2, np.float32)
    image_arrays = {
        "SigLiPFromPatches_0/siglip_encoder/embedding": {"kernel": vector},
        "transformer/embedder/mm_input_projection": {"w": vector},
        "transformer/embedder/mm_soft_embedding_norm": {"scale": vector},
    }
    flat = {}
    for key, array in saved("gemma3").items():
        place, _, last = key.rpartition("/")
        flat.setdefault(f"transformer/{place}", {})[last] = array
    write(tmp_path / "both", flat | image_arrays)
    assert set(OrbaxTree(tmp_path).names) == set(saved("gemma3"))


def test_finds_the_checkpoint_in_a_folder(tmp_path):
    source = DATA / "gemma1_mqa" / "flat"
    shutil.copytree(source, tmp_path / "archive" / "2b")
    shutil.copytree(source, tmp_path / "run" / "9" / "default")
    shutil.copytree(source, tmp_path / "run" / "10" / "default")
    shutil.copytree(source, tmp_path / "several" / "2b")
    shutil.copytree(source, tmp_path / "several" / "7b")

    def folder_of(path):
        return OrbaxTree(path).folder

    assert folder_of(tmp_path / "archive") == tmp_path / "archive" / "2b"
    assert folder_of(tmp_path / "run") == tmp_path / "run" / "10" / "default"
    with pytest.raises(UserError, match="several checkpoints: 2b, 7b"):
        folder_of(tmp_path / "several")
    assert is_orbax(tmp_path / "archive")
    assert not is_orbax(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_1/mlp/linear/w": None}, r"tensor 'layer_1/mlp/linear/w' is missing"),
        ({"layer_1/attn/bias": np.ones(2)}, r"tensor 'layer_1/attn/bias' has no place"),
        ({"final_norm/scale": np.ones(3)}, r"'final_norm/scale' has shape \(3,\), .*\(16,\)"),
        ({"layer_0/mlp/linear/w": np.ones(3)}, r"layer_0/mlp/linear/w has the shape \(3,\), not 2"),
        ({"layer_2/post_ffw_norm/scale": None}, r"'layer_2/post_ffw_norm/scale' is missing"),
        ({"layer_0/skip_scale": np.ones(1)}, r"layer_0/skip_scale is of Gemma 4"),
        ({"layer_0/attn/attn_vec_einsum/w": None}, r"no array layer_0/attn/attn_vec_einsum/w"),
    ],
)
def test_one_error_names_file_and_array(change, message, tmp_path):
    arrays = {key: a for key, a in (saved("gemma2") | change).items() if a is not None}
    write(tmp_path / "broken", nest(arrays))
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.load(tmp_path / "broken", config=decoder_config("gemma2"))
    assert str(tmp_path / "broken") in str(caught.value)


def test_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no Orbax checkpoint at"):
        OrbaxTree(tmp_path)
    (tmp_path / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="_METADATA cannot be read"):
        OrbaxTree(tmp_path)
    write(tmp_path / "other", {"w": np.ones(3)})
    with pytest.raises(UserError, match="has no array embedder/input_embedding"):
        checkpoints.load(tmp_path / "other")
