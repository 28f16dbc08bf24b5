"""Model files of llama2.c (its first format, version 0): a header and float32 arrays in a row."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from rope_study.errors import UserError


@dataclasses.dataclass(frozen=True)
class Header:
    """The seven int32 at the head of a file; shared_classifier is the sign of the sixth."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_classifier: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array in the order of the file; rows are outputs, layers come first."""
        V, D, F, L, T = self.vocab_size, self.dim, self.hidden_dim, self.n_layers, self.seq_len
        head_dim = D // self.n_heads
        kv = self.n_kv_heads * head_dim
        shapes = {
            "token_embedding": (V, D),
            "rms_att": (L, D),
            "wq": (L, D, D),
            "wk": (L, kv, D),
            "wv": (L, kv, D),
            "wo": (L, D, D),
            "rms_ffn": (L, D),
            "w1": (L, F, D),
            "w2": (L, D, F),
            "w3": (L, F, D),
            "rms_final": (D,),
            "freq_cis_real": (T, head_dim // 2),
            "freq_cis_imag": (T, head_dim // 2),
        }
        return shapes if self.shared_classifier else shapes | {"wcls": (V, D)}


SKIPPED = ("freq_cis_real", "freq_cis_imag")  # tables of cos and sin, computed here
HEADER_BYTES = 7 * 4


def read(path: str | os.PathLike) -> tuple[Header, dict[str, np.ndarray]]:
    """The header and the arrays f32, mapped: they are read from disk where they are used.

    Raises:
      UserError: the file is missing, cut off, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a model file of llama2.c")
    found = path.stat().st_size
    if found < HEADER_BYTES:
        raise UserError(f"{path} has {found} bytes, fewer than the header of a llama2.c model")
    header = _header(path)
    arrays, offset = {}, HEADER_BYTES
    for name, shape in header.shapes().items():
        size = 4 * int(np.prod(shape))
        if name not in SKIPPED and offset + size <= found:
            arrays[name] = np.memmap(path, "<f4", mode="r", offset=offset, shape=shape)
        offset += size
    if offset != found:
        raise UserError(
            f"{path} has {found:,} bytes and its header asks for {offset:,}: the file is cut off or"
            " no model of llama2.c (version 0)"
        )
    return header, arrays


def _header(path: Path) -> Header:
    numbers = [int(n) for n in np.fromfile(path, "<i4", count=7)]
    vocab_size = numbers[5]
    header = Header(*numbers[:5], abs(vocab_size), numbers[6], vocab_size > 0)
    sizes = [*numbers[:5], header.vocab_size, header.seq_len]
    heads = header.n_heads
    fits = min(sizes) > 0 and header.dim % (2 * heads) == 0 and heads % header.n_kv_heads == 0
    if not fits or max(sizes) > 2**24:
        raise UserError(f"{path} is no model of llama2.c (version 0): its header reads {numbers}")
    return header
