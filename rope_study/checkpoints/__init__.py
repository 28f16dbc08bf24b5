"""Checkpoints: a path in, a decoder with its parameters out."""

from rope_study.checkpoints.own import load, load_tokenizer

__all__ = ["load", "load_tokenizer"]
