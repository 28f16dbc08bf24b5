"""Data: text in, tokens, and batches that are a function of (seed, step).

Takes files, or the text that ships with Python, or a token store, and the numbers in DataSettings.
Gives documents, tokenizers, int32 windows that begin with BOS, and texts to probe with. Add a
tokenizer as a class in tokenizers/, by the ending of its files; a format of large files in
preparation/formats.py; probe texts in passages.py.
"""

from rope_study.data.batches import TrainBatches, Windows, held_out_batches, tokenize
from rope_study.data.corpus import Corpus, DataSettings, load_corpus
from rope_study.data.documents import fingerprint, pieces, read_documents, split
from rope_study.data.store import Store, open_store
from rope_study.data.texts import DOMAINS, PASSAGES, Text, load_texts
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.bytes import ByteTokenizer
from rope_study.data.tokenizers.gguf import GGUFTokenizer
from rope_study.data.tokenizers.hugging_face import HuggingFaceTokenizer
from rope_study.data.tokenizers.llama2c import Llama2cTokenizer
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.data.tokenizers.sentencepiece import SentencePieceTokenizer

__all__ = [
    "DOMAINS",
    "PASSAGES",
    "ByteTokenizer",
    "Corpus",
    "DataSettings",
    "GGUFTokenizer",
    "HuggingFaceTokenizer",
    "Llama2cTokenizer",
    "SentencePieceTokenizer",
    "Store",
    "Text",
    "Tokenizer",
    "TrainBatches",
    "Windows",
    "fingerprint",
    "held_out_batches",
    "load_corpus",
    "load_texts",
    "load_tokenizer",
    "open_store",
    "pieces",
    "read_documents",
    "split",
    "tokenize",
]
