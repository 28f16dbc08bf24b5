"""GGUF files against Transformers, which reads the same ones.

The files are made here, of Transformers' own random models. How far logits and activations may
differ is what docs/checkpoints.md says. The tokenizers of two released models are compared where
their files are: ROPE_STUDY_CACHE, by default where make released puts them.
"""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import claims  # noqa: E402
import gguf_files  # noqa: E402
import peers  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402

from rope_study import checkpoints  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 128, (4, 40))
CLAIMED = claims.tolerances("GGUF", numbers=3)
ROTATED = ("q_rotated", "k_rotated")

LLAMA = {"num_hidden_layers": 3, "num_key_value_heads": 2}
# Where Transformers takes a default for what the file says, the model has that default.
GEMMA = {"num_key_value_heads": 2, "head_dim": 256, "sliding_window": 8, "num_hidden_layers": 8}
CASES = {
    "llama_f32": ("Llama", LLAMA, "F32"),
    "llama_q8_0": ("Llama", LLAMA | {"tie_word_embeddings": True}, "Q8_0"),
    "llama_q4_1": ("Llama", LLAMA | {"head_dim": 16}, "Q4_1"),
    "gemma2_f16": ("Gemma2", GEMMA | {"num_hidden_layers": 5}, "F16"),
    "gemma3_f32": ("Gemma3Text", GEMMA, "F32"),
    "gemma3_q4_1": ("Gemma3Text", GEMMA, "Q4_1"),
    "phi3_f16": ("Phi3", LLAMA | {"sliding_window": None, "pad_token_id": 0}, "F16"),
    "qwen3_q8_0": ("Qwen3", LLAMA | {"head_dim": 128}, "Q8_0"),
    "smollm3_f32": ("SmolLM3", LLAMA | {"num_hidden_layers": 5, "pad_token_id": 0}, "F32"),
}
UNREAD = ("smollm3_f32",)  # Transformers reads no GGUF of these: compared with what was written


def test_every_case_is_claimed_and_every_claim_tested():
    assert CLAIMED.keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_files_have_the_peers_logits_and_activations(case, tmp_path):
    name, fields, quantisation = CASES[case]
    model = peers.build(name, fields)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    gguf_files.convert(tmp_path / "m.gguf", model.config.to_dict(), tensors, quantisation)
    if case not in UNREAD:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", dtype=torch.float32
        ).eval()
    _, golden = peers.run(model, TOKENS)
    compared = checkpoints.compare(*checkpoints.load(tmp_path), golden)
    differences = {"logits": 0.0, "rotated": 0.0, "others": 0.0}
    for row in compared.rows:
        kind = row.name.split("/")[-1]
        kind = "rotated" if kind in ROTATED else kind if kind == "logits" else "others"
        differences[kind] = max(differences[kind], row.difference)
    print(case, differences)  # what the docs claim, shown by pytest -rP
    assert all(np.array(list(differences.values())) > 0)
    assert all(np.array(list(differences.values())) <= CLAIMED[case]), str(compared)


# --- tokenizers of released models ------------------------------------------------------------

CACHE = Path(os.environ.get("ROPE_STUDY_CACHE", "~/.cache/rope_study")).expanduser()
MODELS = ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf")
ALPHABETS = (
    "abcdefgh ABCDEFG ", "0123456789 .,", " \t\n\r", "'s 't 're 'LL", "äöüßéñçøåœ ", "привет мир ",
    "你好世界。", "こんにちは", "مرحبا بالعالم", "नमस्ते",
    "🙂👩‍👩‍👧🇫🇷", "²³½Ⅷ٣७ ", "#$%&*()[]{}<>|~^\\/_-+=\"'",
    "\u00a0\u200b\u2009\ufeff\u3000", "e\u0301a\u0308", "▁Ġ", "\x00\x07\x1b",
)  # fmt: skip
SPECIAL = ("<|im_start|>", "<|im_end|>", "<bos>", "<eos>", "<start_of_turn>", "<unused7>", "<s>")


def odd_lines(count=1000):
    """Lines of several scripts, spaces, digits and special tokens, drawn at random."""
    random = np.random.default_rng(0)
    lines = ["", " ", "\n\n", "hello", "  hello  world ", "<|im_start|>user\nhi<|im_end|>"]
    while len(lines) < count:
        parts = []
        for _ in range(random.integers(1, 8)):
            alphabet = list(ALPHABETS[random.integers(len(ALPHABETS))])
            parts.append("".join(random.choice(alphabet, random.integers(1, 12))))
            if random.random() < 0.1:
                parts.append(str(random.choice(SPECIAL)))
        lines.append("".join(parts))
    return lines


@pytest.mark.parametrize("name", MODELS)
def test_tokenizers_of_released_models_are_the_peers(name, tmp_path):
    if not (CACHE / name).exists():
        pytest.skip(f"{CACHE / name} is not there: make released")
    ours = checkpoints.load_tokenizer(CACHE / name)
    theirs = transformers.AutoTokenizer.from_pretrained(CACHE, gguf_file=name)
    if name.startswith("SmolLM2"):
        # Transformers splits by GPT-2's rule alone; SmolLM2's tokenizer.json takes digits apart
        # before, and so says the file (tokenizer.ggml.pre is smollm).
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ours.save(tmp_path)
    saved = checkpoints.load_tokenizer(tmp_path)
    assert saved.fingerprint == ours.fingerprint and saved.bos == ours.bos
    for line in odd_lines():
        ids = ours.encode(line).tolist()
        assert ids == theirs.encode(line, add_special_tokens=False), repr(line)
        assert saved.encode(line).tolist() == ids
        if ids:
            assert ours.encode_batch([line])[0][0].tolist() == theirs.encode(line), repr(line)
        assert ours._text(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
