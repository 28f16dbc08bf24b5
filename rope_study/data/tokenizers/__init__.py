"""Tokenizers: text to ids and back, by bytes or by a file of SentencePiece and others.

Takes "bytes" or a path, gives a Tokenizer. Add a kind as a class in a file of its own, and to KINDS
in load.py by the ending of its files.
"""

from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.bytes import ByteTokenizer
from rope_study.data.tokenizers.hugging_face import HuggingFaceTokenizer
from rope_study.data.tokenizers.llama2c import Llama2cTokenizer
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.data.tokenizers.sentencepiece import SentencePieceTokenizer
