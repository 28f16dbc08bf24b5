"""The model.bin of llama2.c (version 0): a header, then float32 arrays one after another."""

import dataclasses
import math
import os
import struct
from pathlib import Path

import numpy as np

from rope_study.errors import UserError
from rope_study.files.paths import local_copy, to_path

HEADER = struct.Struct("<7i")
MAGIC = 0x616B3432  # begins the files of later versions, "24ka" in bytes

# The largest header field that is believed: far above every model, and small enough that another
# kind of file is recognized by its header and not by an absurd size.
LARGEST = 2**24


@dataclasses.dataclass(frozen=True)
class Header:
    """Shapes of the model.

    Attributes:
      dim: of the residual stream, D.
      hidden_dim: of the MLP, F.
      n_layers, n_heads, n_kv_heads: L, N and K.
      vocab_size: V, positive.
      seq_len: tokens that it was trained for.
      shared_classifier: whether logits come from the token embedding, so that there is no wcls.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_classifier: bool

    @property
    def head_dim(self) -> int:
        """H = D / N."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """K * H."""
        return self.n_kv_heads * self.head_dim


def read(path: str | os.PathLike) -> tuple[Header, dict[str, np.ndarray]]:
    """The header and the arrays of a file, mapped from disk and read where they are used.

    Pairs of a head are interleaved, as in Meta's Llama: dimensions 2i and 2i + 1 turn together.
    The tables of cos and sin that the file holds are left out.

    Args:
      path: of a model.bin, such as stories260K.bin.

    Returns:
      (header, arrays), float32 and read-only; rows are outputs, so that y = w @ x:
        token_embedding [V, D], rms_att [L, D], wq [L, N*H, D], wk and wv [L, K*H, D],
        wo [L, D, N*H], rms_ffn [L, D], w1 [L, F, D], w2 [L, D, F], w3 [L, F, D], rms_final [D],
        and wcls [V, D] unless the classifier is shared.

    Raises:
      UserError: no such file, a header that no model has, or a size that is not the header's.
    """
    file = to_path(path)
    if not file.is_file():
        raise UserError(f"{file} is not a file: give the path of a model.bin of llama2.c")
    header = _read_header(file)
    shapes = _shapes(header)
    expected = HEADER.size + 4 * sum(math.prod(shape) for shape in shapes.values())
    size = local_copy(file).stat().st_size
    if size != expected:
        raise UserError(
            f"{file} holds {size:,} bytes and its header asks for {expected:,} ({header}): it is"
            " cut off or no model.bin of llama2.c; copy or download it again"
        )
    return header, _map_arrays(file, shapes)


def _read_header(file: Path) -> Header:
    with file.open("rb") as stream:
        content = stream.read(HEADER.size)
    if len(content) < HEADER.size:
        raise UserError(
            f"{file} holds {len(content)} bytes, the header of a model.bin of llama2.c alone has"
            f" {HEADER.size}; copy or download it again"
        )
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = HEADER.unpack(content)
    if dim == MAGIC:
        raise UserError(
            f"{file} is of version {hidden_dim} of llama2.c's format, only version 0 is read:"
            " export it with --version 0"
        )
    header = Header(
        dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), seq_len,
        shared_classifier=vocab_size > 0,
    )  # fmt: skip
    problem = _problem(header)
    if problem:
        raise UserError(
            f"{file} is no model.bin of llama2.c: {problem} in its header ({header}); give the path"
            " of one"
        )
    return header


def _problem(header: Header) -> str | None:
    """What no model can have."""
    for field in dataclasses.fields(Header):
        value = getattr(header, field.name)
        if field.type is int and not 0 < value <= LARGEST:
            return f"{field.name}={value} is not 1..{LARGEST}"
    if header.dim % header.n_heads:
        return f"dim={header.dim} is not a multiple of n_heads={header.n_heads}"
    if header.head_dim % 2:
        return f"dim / n_heads = {header.head_dim} is odd and cannot be split into pairs"
    if header.n_heads % header.n_kv_heads:
        return f"n_heads={header.n_heads} is not a multiple of n_kv_heads={header.n_kv_heads}"
    return None


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Every array of the file, in its order."""
    layers, dim, hidden = header.n_layers, header.dim, header.hidden_dim
    table = header.seq_len, header.head_dim // 2
    shapes = {
        "token_embedding": (header.vocab_size, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, header.kv_dim, dim),
        "wv": (layers, header.kv_dim, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
        "freq_cis_real": table,
        "freq_cis_imag": table,
    }
    if not header.shared_classifier:
        shapes["wcls"] = header.vocab_size, dim
    return shapes


def _map_arrays(file: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    numbers = np.memmap(local_copy(file), "<f4", mode="r", offset=HEADER.size)
    arrays, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        if not name.startswith("freq_cis"):
            arrays[name] = numbers[start:stop].reshape(shape)
        start = stop
    return arrays
