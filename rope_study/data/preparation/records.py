"""What a file is made of: texts, instructions, tokens, and what was left out and why."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A record that is left out.

    Attributes:
      reason: what it is counted under.
      number: of the record in its file.
      detail: what is wrong with it; "" where it is only not wanted: a redirect, an empty text.
    """

    reason: str
    number: int
    detail: str = ""


# A text, (inputs, targets), or ids int[n] of one document, without BOS or EOS around it.
Record = str | tuple[str, str] | np.ndarray | Skipped


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are read.

    Attributes:
      fields: of JSON or a table: the text's, or those of inputs and targets.
      block: bytes that a worker takes at once, about.
      token_dtype: of flat token files.
      separator, vocab_size: of the tokenizer.
    """

    fields: tuple[str, ...]
    block: int
    token_dtype: str | None
    separator: int
    vocab_size: int
