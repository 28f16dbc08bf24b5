"""config.json as fields that are all understood: known keys, of their types, null where it says so.

The reference for each key is its family's configuration class in Transformers (5.24): null is a
setting where the class allows it, and refused where it does not.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rope_study.checkpoints.hugging_face.families import FAMILIES, REFUSED, WRAPPERS
from rope_study.errors import UserError
from rope_study.files import read_json

Fields = Mapping[str, Any]

# --- what keys are ----------------------------------------------------------------------------

SIZES = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads head_dim max_position_embeddings original_max_position_embeddings"
    " sliding_window sliding_window_size sliding_window_pattern global_head_dim"
    " num_global_key_value_heads vocab_size_per_layer_input no_rope_layer_interval".split()
)
COUNTS = frozenset(
    "bos_token_id hidden_size_per_layer_input num_kv_shared_layers max_window_layers".split()
)
NUMBERS = frozenset(
    "rms_norm_eps rope_theta rope_local_base_freq partial_rotary_factor query_pre_attn_scalar"
    " attn_logit_softcapping final_logit_softcapping".split()
)
FLAGS = frozenset(
    "tie_word_embeddings use_sliding_window attention_k_eq_v use_double_wide_mlp is_causal".split()
)
TEXTS = frozenset(["hidden_act", "hidden_activation"])
LISTS = frozenset(["layer_types", "no_rope_layers"])
OBJECTS = frozenset(["rope_scaling", "rope_parameters", "per_layer_config"])

# Where null is a setting, as a rule "none of it": no cap, no window, as many key heads as heads.
NULLABLE = LISTS | OBJECTS | TEXTS
NULLABLE |= frozenset(
    "num_key_value_heads sliding_window bos_token_id num_global_key_value_heads"
    " attn_logit_softcapping final_logit_softcapping partial_rotary_factor".split()
)

# What every family has; others have what their defaults name, and Family.keys.
COMMON = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps bos_token_id"
    " tie_word_embeddings layer_types rope_parameters is_causal".split()
)

# Keys of released files that change nothing that is computed here.
HARMLESS = frozenset(
    # Who wrote the file, and how the weights are stored.
    "model_type architectures auto_map _name_or_path name_or_path _commit_hash torch_dtype dtype"
    " transformers_version transformers.js_config unsloth_version unsloth_fixed is_llama_config"
    # Training.
    " initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop dropout"
    " gradient_checkpointing pretraining_tp"
    # Special tokens, and how text is generated.
    " eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix"
    " use_cache cache_implementation do_sample temperature top_k top_p typical_p max_length"
    " min_length max_new_tokens num_beams num_beam_groups num_return_sequences length_penalty"
    " repetition_penalty diversity_penalty early_stopping no_repeat_ngram_size bad_words_ids"
    " encoder_no_repeat_ngram_size begin_suppress_tokens suppress_tokens forced_bos_token_id"
    " forced_eos_token_id exponential_decay_length_penalty remove_invalid_values"
    # What every model of Transformers has, and what decoders do not read.
    " id2label label2id num_labels problem_type task_specific_params finetuning_task return_dict"
    " return_dict_in_generate output_scores output_attentions output_hidden_states torchscript"
    " use_bfloat16 tf_legacy_loss chunk_size_feed_forward is_decoder is_encoder_decoder"
    " tie_encoder_decoder use_return_dict max_sequence_length"
    # Kernels.
    " attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled"
    " use_flash_attn use_flash_attention"
    # Remains of other spellings that Transformers does not read either.
    " _sliding_window_pattern boi_token_id eoi_token_id image_token_id".split()
)

OF_IMAGES = ("use_bidirectional_attention", "vision")  # Gemma 4; text stays causal

# --- a file -----------------------------------------------------------------------------------


def read_fields(folder: Path) -> tuple[str, dict[str, Any], bool]:
    """(model_type, its fields, whether it is a part of a multimodal model), by config.json.

    Raises:
      UserError: no such file, not JSON, or a model_type that is not among FAMILIES.
    """
    file = folder / "config.json"
    fields = read_json(file, remedy="give a folder with a config.json of Transformers")
    kind = fields.get("model_type")
    wrapped = False
    if isinstance(kind, str) and kind in WRAPPERS:
        wrapped = True
        kind, fields = _text_part(WRAPPERS[kind], fields, file)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{file}: model_type {kind!r} is not supported. Supported:"
            f" {', '.join([*FAMILIES, *WRAPPERS])}"
        )
    return kind, fields, wrapped


def _text_part(kind: str, outer: Fields, file: Path) -> tuple[str, dict[str, Any]]:
    """The text model of a multimodal one; Transformers takes the tie from the file's top."""
    fields = outer.get("text_config")
    if not isinstance(fields, dict):
        raise UserError(f"{file}: model_type {outer['model_type']!r} without a text_config")
    if fields.get("model_type", kind) != kind:
        raise UserError(
            f"{file}: text_config.model_type={fields['model_type']!r} is not supported with"
            f" model_type={outer['model_type']!r}: it must be {kind!r}"
        )
    keys = [key for key in ("quantization_config", "quantization") if outer.get(key)]
    quantised = {key: outer[key] for key in keys}
    tied = outer.get("tie_word_embeddings", True) or False  # null is false there
    return kind, {**fields, **quantised, "tie_word_embeddings": tied}


# --- checks -----------------------------------------------------------------------------------


def complete(kind: str, fields: Fields, file: str) -> dict[str, Any]:
    """The fields with their family's defaults for what they leave out; nulls stay None.

    Raises:
      UserError: a key that is not understood, not supported, or has another type.
    """
    family = FAMILIES[kind]
    understood = COMMON | family.defaults.keys() | set(family.keys)
    for key, value in fields.items():
        if key in understood:
            _check(key, value, key not in family.defaults, file)
        elif not value or key in HARMLESS or (key, value) == OF_IMAGES:
            continue  # null, false and empty: a feature that is off
        elif key in REFUSED:
            raise UserError(f"{file}: {key}={value!r:.60} is not supported ({REFUSED[key]})")
        else:
            raise UserError(
                f"{file}: {key}={value!r:.60} is no setting of {kind} that is understood; if it"
                " changes nothing that the model computes, remove it"
            )
    completed = family.defaults | dict(fields)
    again = completed.get("sliding_window_size")  # Gemma 2 9B says it twice
    if again not in (None, completed.get("sliding_window")):
        raise UserError(
            f"{file}: sliding_window={completed.get('sliding_window')} and sliding_window_size="
            f"{again} differ; make them equal, or remove the second"
        )
    return completed


def _check(key: str, value: Any, has_no_default: bool, file: str) -> None:
    """Refuses a value of another type, and null where that is no setting."""
    if value is None:
        # A family with a size of its own for heads does not derive it.
        if key in NULLABLE or (key == "head_dim" and has_no_default):
            return
        raise UserError(f"{file}: {key}=null is no setting: give {_expected(key)}")
    if not _is_of_type(key, value):
        raise UserError(f"{file}: {key}={value!r:.60} must be {_expected(key)}")
    if key == "is_causal" and not value:
        raise UserError(f"{file}: is_causal=false is not supported (attention to later tokens)")


def _is_of_type(key: str, value: Any) -> bool:
    if key in FLAGS:
        return isinstance(value, bool)
    if key in SIZES | COUNTS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and (1 if key in SIZES else 0) <= value <= _largest(key)
    if key in NUMBERS:
        return is_number(value) and value > 0
    types = {TEXTS: str, LISTS: list, OBJECTS: dict}
    return all(isinstance(value, expected) for keys, expected in types.items() if key in keys)


def _largest(key: str) -> int:
    """Far above every model; a list is made of the layers before any tensor is looked at."""
    return 10_000 if key == "num_hidden_layers" else 2**31


def _expected(key: str) -> str:
    if key in SIZES | COUNTS:
        return f"a whole number from {1 if key in SIZES else 0} to {_largest(key):,}"
    words = {NUMBERS: "a number above 0", FLAGS: "true or false", TEXTS: "a text"}
    words |= {LISTS: "a list", OBJECTS: "an object, {...}"}
    return next(word for keys, word in words.items() if key in keys)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; true, false and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
