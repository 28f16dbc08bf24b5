"""SentencePiece's BPE word by word: the same ids in less time, as words come again.

Where no piece of a vocabulary goes on after a space, no merge does either: the ids of a text are
those of its words, each with the spaces before it. What words are is seen in the normalised text,
in which a space is written as U+2581.
"""

import itertools
import re
from typing import Any

from sentencepiece import sentencepiece_model_pb2

SPACE = "\u2581"
WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
KEPT = 2**18  # words, some 50 MB

BPE = sentencepiece_model_pb2.TrainerSpec.BPE  # type: ignore[attr-defined]


class Words:
    """Encodes with a SentencePieceProcessor, but every word only once."""

    def __init__(self, processor: Any):
        """Of a processor for which `apply_to` holds."""
        self._processor = processor
        self._prefixed = processor.normalize("a") == f"{SPACE}a"
        self._ids: dict[str, list[int]] = {}

    @staticmethod
    def apply_to(processor: Any) -> bool:
        """Whether the ids of a text are those of its words."""
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(processor.serialized_model_proto())
        pieces = {piece.piece for piece in model.pieces}
        goes_on = any(set(piece.lstrip(SPACE)) & {SPACE, " "} for piece in pieces)
        return model.trainer_spec.model_type == BPE and SPACE in pieces and not goes_on

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as the processor gives them."""
        words, known, ids = WORD.findall(self._processor.normalize(text)), self._ids, {}
        if new := [word for word in {*words} if word not in known]:
            sources = [word.removeprefix(SPACE) if self._prefixed else word for word in new]
            sources = [source.replace(SPACE, " ") for source in sources]
            if self._processor.normalize(sources) != new:
                return self._processor.encode(text)  # words depend on what is around them
            ids = dict(zip(new, self._processor.encode(sources, num_threads=1), strict=True))
            if len(known) < KEPT:  # the words that come often come early
                known.update(ids)
        parts = [known[word] if word in known else ids[word] for word in words]
        return list(itertools.chain.from_iterable(parts))
