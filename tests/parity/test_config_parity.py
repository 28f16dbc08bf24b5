"""Files of config.json that people write by hand: Transformers reads them, and so must we alike.

Each is read by Transformers itself, which makes a random model of it; its tensors are saved beside
the file as it was written, and both run the folder.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax.numpy as jnp  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402

from rope_study import checkpoints, rotary  # noqa: E402
from rope_study.checkpoints.hugging_face.config import decoder_config  # noqa: E402
from rope_study.checkpoints.hugging_face.fields import read_fields  # noqa: E402
from rope_study.errors import UserError  # noqa: E402

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256,
}  # fmt: skip
GEMMA3 = {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"type": "longrope", "short_factor": [1, 1.1, 1.2, 1.3], "long_factor": [2, 3, 4, 5]}
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 40))
AGREE = 1e-4  # of logits up to 30, in f32; a file that is read otherwise is off by more than 0.1

READ = {
    "caps of null": {"model_type": "gemma2", "attn_logit_softcapping": None}
    | {"final_logit_softcapping": None},
    "as many key heads as heads": {"model_type": "qwen3", "num_key_value_heads": None},
    "mistral with types of layers": {"model_type": "mistral", "sliding_window": 8}
    | {"layer_types": ["full_attention", "sliding_attention"]},
    "mistral without windows": {"model_type": "mistral", "sliding_window": None},
    "a base beside rope_parameters": {"model_type": "llama", "rope_theta": 3e4}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "longrope, trained length at the top": {"model_type": "llama", "rope_scaling": LONGROPE}
    | {"original_max_position_embeddings": 64},
    "llama3, trained length at the top": {"model_type": "llama", "rope_scaling": LLAMA3}
    | {"original_max_position_embeddings": 64},
    "llama3, no trained length": {"model_type": "llama", "rope_scaling": LLAMA3},
    "yarn, two trained lengths": {"model_type": "llama", "original_max_position_embeddings": 32}
    | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "proportional and rounding": {"model_type": "llama", "head_dim": 100}
    | {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.58}}
    | {"rope_theta": 1e4},
    "gemma 3 of before": GEMMA3 | {"rope_theta": 1e6, "rope_scaling": LINEAR},
    "gemma 3 with one type": GEMMA3 | {"rope_parameters": {"full_attention": LINEAR}},
    "smollm3": {"model_type": "smollm3", "max_window_layers": 28, "head_dim": 8}
    | {"pad_token_id": 0, "sliding_window": None},
}


def saved(fields, folder):
    """A random model of a file; its tensors beside the file as it is. Returns the model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.3 * noise) if "norm" in name else parameter.copy_(0.3 * noise)
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def logits_of(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.mark.parametrize("name", READ)
def test_files_mean_what_they_mean_to_transformers(name, tmp_path):
    model = saved(SIZES | READ[name], tmp_path / "model")
    decoder, params = checkpoints.load(tmp_path / "model")
    ours = decoder.apply({"params": params}, jnp.asarray(TOKENS))[0]
    np.testing.assert_allclose(ours, logits_of(model), rtol=0, atol=AGREE)


@pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
def test_a_text_part_without_its_model_type(kind, tmp_path):
    """The encodings of all layers, against what the class makes of the same text part."""
    text = SIZES | {"num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": text}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    ours = decoder_config(*read_fields(tmp_path)[:2])
    for spec, layer_type in zip(ours.layer_specs, theirs.layer_types, strict=True):
        expected = theirs.rope_parameters[layer_type]
        assert spec.rotary.theta == expected["rope_theta"]
        assert isinstance(spec.rotary, rotary.PRope) == (expected["rope_type"] == "proportional")
        assert (spec.window is not None) == (layer_type == "sliding_attention")


def test_dynamic_past_its_trained_length(tmp_path):
    """Exported, Transformers scales as our encoding of the length that is run."""
    fields = SIZES | {"model_type": "llama", "max_position_embeddings": 16}
    saved(fields | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, tmp_path / "model")
    decoder, params = checkpoints.load(tmp_path / "model")
    checkpoints.export(decoder, params, tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    longer = "dynamic_ntk_rope(factor=2, context=16, length=40)"
    decoder, params = checkpoints.load(tmp_path / "model", rotary=longer)
    ours = decoder.apply({"params": params}, jnp.asarray(TOKENS))[0]
    np.testing.assert_allclose(ours, logits_of(again), rtol=0, atol=AGREE)


def test_an_output_table_apart_is_used_by_transformers(tmp_path):
    """It warns and does not tie; here the two that disagree are named."""
    saved(SIZES | {"model_type": "llama"}, tmp_path / "model")
    fields = SIZES | {"model_type": "llama", "tie_word_embeddings": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    with pytest.raises(UserError, match=r"lm_head.weight' differs from .*tie_word_embeddings"):
        checkpoints.load(tmp_path / "model")


@pytest.mark.parametrize(
    "prepends, asked", [(True, None), (True, True), (False, None), (False, False)]
)
def test_bos_is_as_transformers_has_it(prepends, asked, tmp_path):
    """Where tokenizer_config.json does not contradict the post-processor, which it then obeys."""
    vocabulary = {"<unk>": 0, "<s>": 1, "a": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    model.add_special_tokens(["<s>"])
    if prepends:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    model.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {} if asked is None else {"add_bos_token": asked}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "bos_token_id": 1}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("a").input_ids
    ours = checkpoints.load_tokenizer(tmp_path)
    assert (ours.bos is None) != prepends
    assert ours.encode_batch(["a"])[0][0].tolist() == theirs
