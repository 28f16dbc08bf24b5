"""Checkpoints: a path in, a decoder with its parameters out; and out to Hugging Face."""

from rope_study.checkpoints.compare import compare
from rope_study.checkpoints.hugging_face.folder import export
from rope_study.checkpoints.load import load, load_tokenizer

__all__ = ["compare", "export", "load", "load_tokenizer"]
