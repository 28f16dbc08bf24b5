"""Data: text in, tokens, and batches that are a function of (seed, step)."""

from rope_study.data.batches import TrainBatches, Windows, held_out_batches, tokenize
from rope_study.data.corpus import Corpus, load_corpus
from rope_study.data.sources import fingerprint, read_documents, split
from rope_study.data.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "SentencePieceTokenizer",
    "Tokenizer",
    "TrainBatches",
    "Windows",
    "fingerprint",
    "held_out_batches",
    "load_corpus",
    "load_tokenizer",
    "read_documents",
    "split",
    "tokenize",
]
