"""Tokenizers: text to ids and back, by bytes or by a file of SentencePiece and others."""

from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.bytes import ByteTokenizer
from rope_study.data.tokenizers.hugging_face import HuggingFaceTokenizer
from rope_study.data.tokenizers.llama2c import Llama2cTokenizer
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.data.tokenizers.sentencepiece import SentencePieceTokenizer
