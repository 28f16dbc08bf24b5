"""Checkpoints: a path in, a decoder with its parameters out; and out to Hugging Face.

Takes runs of this project, Hugging Face, official Gemma, GGUF and llama2.c (load.py).
To add a format: a folder that gives an OpenCheckpoint (weight_map.py), and a line in load.py.
"""

from rope_study.checkpoints.compare import compare
from rope_study.checkpoints.hugging_face import export
from rope_study.checkpoints.load import load, load_config, load_tokenizer
from rope_study.checkpoints.package_index import fetch

__all__ = ["compare", "export", "fetch", "load", "load_config", "load_tokenizer"]
