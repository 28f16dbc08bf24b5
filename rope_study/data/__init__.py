"""Data: text in, tokens, and batches that are a function of (seed, step)."""

from rope_study.data.base_tokenizer import Tokenizer
from rope_study.data.batches import TrainBatches, Windows, held_out_batches, tokenize
from rope_study.data.corpus import Corpus, load_corpus
from rope_study.data.hugging_face_tokenizer import HuggingFaceTokenizer
from rope_study.data.llama2c_tokenizer import Llama2cTokenizer
from rope_study.data.sources import fingerprint, read_documents, split
from rope_study.data.texts import Texts, load_texts
from rope_study.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, load_tokenizer

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "HuggingFaceTokenizer",
    "Llama2cTokenizer",
    "SentencePieceTokenizer",
    "Texts",
    "Tokenizer",
    "TrainBatches",
    "Windows",
    "fingerprint",
    "held_out_batches",
    "load_corpus",
    "load_texts",
    "load_tokenizer",
    "read_documents",
    "split",
    "tokenize",
]
