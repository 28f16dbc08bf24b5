"""Official Gemma checkpoints, against tiny ones that Google's own package wrote."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rope_study.checkpoints import official_gemma
from rope_study.decoder import Decoder, DecoderConfig
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
    whole = ocp.PyTreeCheckpointer().restore(folder)
    flat = {}
    for place, array in jax.tree_util.tree_leaves_with_path(whole):
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


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_the_peers(name):
    shapes = official_gemma.infer_shapes(official_gemma.read_tree(DATA / name))
    config = peer(name)[2]
    assert shapes == {
        "vocab_size": config["num_embed"],
        "width": config["embed_dim"],
        "layers": len(config["attention_types"]),
        "heads": config["num_heads"],
        "kv_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "mlp_hidden": config["hidden_dim"],
        "generation": GENERATION[name],
        "fused_qkv": config["num_heads"] == config["num_kv_heads"],
        "transposed_gating": config["transpose_gating_einsum"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_restores_what_was_saved(name):
    tree, expected = official_gemma.read_tree(DATA / name), saved(name)
    assert set(tree) == set(expected)
    for key, array in official_gemma.restore(tree, tree).items():
        assert isinstance(array, np.ndarray)
        assert tree[key].shape == array.shape and tree[key].dtype == array.dtype
        np.testing.assert_array_equal(array, expected[key], key)


@pytest.mark.parametrize("name", NAMES)
def test_every_array_lands_where_it_belongs(name):
    """The same products with the peer's axes, as its code writes them, and with ours."""
    tree, official = official_gemma.read_tree(DATA / name), saved(name)
    shapes = official_gemma.infer_shapes(tree)
    layer = {
        key.removeprefix("layer_1/"): a for key, a in official.items() if key.startswith("layer_1/")
    }
    ours = official_gemma.read(tree, official_gemma.sources(shapes, 1))
    if "attn/qkv_einsum/w" in layer:
        q, k, v = layer["attn/qkv_einsum/w"]
    else:
        q, (k, v) = layer["attn/q_einsum/w"], layer["attn/kv_einsum/w"]
    gate, up = layer["mlp/gating_einsum/w"]
    gating = "fd->df" if peer(name)[2]["transpose_gating_einsum"] else "df->df"
    expected = {
        "attention_norm": layer["pre_attention_norm/scale"],
        "q": np.einsum("ndh->dnh", q),
        "k": np.einsum("kdh->dkh", k),
        "v": np.einsum("kdh->dkh", v),
        "o": layer["attn/attn_vec_einsum/w"],
        "mlp_norm": layer["pre_ffw_norm/scale"],
        "gate": np.einsum(gating, gate),
        "up": np.einsum(gating, up),
        "down": layer["mlp/linear/w"],
    }
    if shapes["generation"] > 1:
        expected["post_attention_norm"] = layer["post_attention_norm/scale"]
        expected["post_mlp_norm"] = layer["post_ffw_norm/scale"]
    if shapes["generation"] > 2:
        expected["q_norm"] = layer["attn/_query_norm/scale"]
        expected["k_norm"] = layer["attn/_key_norm/scale"]
    assert set(ours) == set(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(ours[key], array, key)


@pytest.mark.parametrize("name", ["gemma1_mqa", "gemma1_mha"])
def test_gemma_1_has_the_peers_logits(name):
    tree = official_gemma.read_tree(DATA / name)
    shapes = official_gemma.infer_shapes(tree)
    fields = {key: shapes[key] for key in DecoderConfig.__dataclass_fields__ if key in shapes}
    layers = [
        official_gemma.read(tree, official_gemma.sources(shapes, i))
        for i in range(shapes["layers"])
    ]
    params = official_gemma.read(tree, official_gemma.sources(shapes))
    params["pattern_0"] = {key: np.stack([layer[key] for layer in layers]) for key in layers[0]}
    tokens, logits, _ = peer(name)
    ours, _ = Decoder(DecoderConfig(**fields)).apply({"params": params}, tokens)
    np.testing.assert_allclose(ours, logits, atol=2e-5)


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
    tree = official_gemma.read_tree(tmp_path)
    assert set(tree) == set(official)
    assert official_gemma.infer_shapes(tree)["layers"] == 7
    for key, array in official_gemma.restore(tree, tree, dtype=np.float32).items():
        exact = jnp.asarray(official[key], jnp.bfloat16) if form == "bf16" else official[key]
        np.testing.assert_array_equal(array, np.asarray(exact, np.float32), key)


def test_reads_no_other_array(tmp_path):
    """With every other array's data gone, one can still be restored."""
    folder = tmp_path / "zarr"
    write(folder, nest(saved("gemma2")), use_ocdbt=False)
    tree = official_gemma.read_tree(folder)
    wanted = "layer_1/attn/kv_einsum/w"
    for key in set(tree) - {wanted}:
        shutil.rmtree(folder / key.replace("/", "."))
    restored = official_gemma.restore(tree, [wanted])[wanted]
    np.testing.assert_array_equal(restored, saved("gemma2")[wanted])
    with pytest.raises(UserError, match="layer_0/mlp/linear/w"):
        official_gemma.restore(tree, ["layer_0/mlp/linear/w"])


def test_restores_into_shardings():
    tree = official_gemma.read_tree(DATA / "gemma3_large")
    wanted = official_gemma.sources(official_gemma.infer_shapes(tree), 2)
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    split = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor"}
    shardings = {
        key: NamedSharding(mesh, PartitionSpec(*map(split.get, official_gemma.AXES[key])))
        for key in wanted
    }
    expected = official_gemma.read(tree, wanted)
    for key, array in official_gemma.read(tree, wanted, shardings=shardings).items():
        assert array.sharding.is_equivalent_to(shardings[key], array.ndim), key
        np.testing.assert_array_equal(array, expected[key], key)
    stored = wanted["k"].sharding("DKH", shardings["k"])
    assert tuple(stored.spec) == (None, "tensor", "fsdp", None)


def test_images_and_audio_are_left_out(tmp_path):
    one = np.ones(2, np.float32)
    others = {
        "SigLiPFromPatches_0/siglip_encoder/embedding": {"kernel": one},
        "transformer/embedder/mm_input_projection": {"w": one},
        "transformer/embedder/mm_soft_embedding_norm": {"scale": one},
    }
    flat = {}
    for key, array in saved("gemma3").items():
        place, _, last = key.rpartition("/")
        flat.setdefault(f"transformer/{place}", {})[last] = array
    write(tmp_path / "both", flat | others)
    assert official_gemma.infer_shapes(official_gemma.read_tree(tmp_path))["generation"] == 3


def test_finds_the_checkpoint_in_a_folder(tmp_path):
    source = DATA / "gemma1_mqa" / "flat"
    shutil.copytree(source, tmp_path / "archive" / "2b")
    shutil.copytree(source, tmp_path / "run" / "9" / "default")
    shutil.copytree(source, tmp_path / "run" / "10" / "default")
    shutil.copytree(source, tmp_path / "several" / "2b")
    shutil.copytree(source, tmp_path / "several" / "7b")

    def found(path):
        return official_gemma.read_tree(path)["final_norm/scale"].folder

    assert found(tmp_path / "archive") == tmp_path / "archive" / "2b"
    assert found(tmp_path / "run") == tmp_path / "run" / "10" / "default"
    with pytest.raises(UserError, match="several checkpoints: 2b, 7b"):
        found(tmp_path / "several")
    assert official_gemma.is_official(tmp_path / "archive")
    assert not official_gemma.is_official(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_1/mlp/linear/w": None}, r"has no array layer_1/mlp/linear/w.* Did you mean"),
        ({"layer_1/attn/bias": np.ones(2)}, r"layer_1/attn/bias is no array of Gemma 2"),
        ({"final_norm/scale": np.ones(3)}, r"final_norm/scale has the shape \(3,\), not \(16,\)"),
        ({"layer_0/mlp/linear/w": np.ones(3)}, r"layer_0/mlp/linear/w has the shape \(3,\), not 2"),
        ({"layer_2/post_ffw_norm/scale": None}, r"has no array layer_2/post_ffw_norm/scale"),
        ({"layer_0/skip_scale": np.ones(1)}, r"layer_0/skip_scale is of Gemma 4"),
        ({"layer_5/pre_ffw_norm/scale": np.ones(16)}, r"has no array layer_3/"),
    ],
)
def test_one_error_names_file_and_array(change, message, tmp_path):
    arrays = {key: a for key, a in (saved("gemma2") | change).items() if a is not None}
    write(tmp_path / "broken", nest(arrays))
    with pytest.raises(UserError, match=message) as caught:
        official_gemma.infer_shapes(official_gemma.read_tree(tmp_path))
    assert str(tmp_path / "broken") in str(caught.value)


def test_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no Orbax checkpoint at"):
        official_gemma.read_tree(tmp_path)
    (tmp_path / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="_METADATA cannot be read"):
        official_gemma.read_tree(tmp_path)
    write(tmp_path / "other", {"w": np.ones(3)})
    with pytest.raises(UserError, match="has no array embedder/input_embedding"):
        official_gemma.infer_shapes(official_gemma.read_tree(tmp_path / "other"))
