"""GGUF files of llama.cpp, quantised or not.

Takes a .gguf of Gemma 1 to 3, Llama, Mistral, Phi 3, Qwen 3 or SmolLM3; gives its decoder and its
weight map. model.py says what a file means, tensors.py reads it. To add one: ARCHITECTURES.
"""

from rope_study.checkpoints.gguf.model import open_checkpoint
