"""Checkpoints: a path in, a decoder with its parameters out; and out to Hugging Face."""

from rope_study.checkpoints.compare import compare
from rope_study.checkpoints.formats import load, load_tokenizer
from rope_study.checkpoints.hugging_face import export

__all__ = ["compare", "export", "load", "load_tokenizer"]
