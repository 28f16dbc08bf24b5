"""rope_study: what the rotary frequencies of a decoder do, and what they should be.

    decoder, params = rope_study.load("runs/quickstart/rope_theta10000_seed0")
    changed = decoder.config.with_rotary(rope_study.p_rope(0.75))

Public names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rope_study import checkpoints, data, figures, interventions, probes, rotary, theory
    from rope_study.checkpoints import compare, export, load, load_tokenizer
    from rope_study.decoder import Decoder, DecoderConfig, LayerSpec
    from rope_study.decoder.sampling import generate
    from rope_study.rotary import Encoding, nope, p_rope, parse, rope

_PACKAGES = ("checkpoints", "data", "figures", "interventions", "probes", "rotary", "theory")
_NAMES = {
    "checkpoints": ("compare", "export", "load", "load_tokenizer"),
    "decoder": ("Decoder", "DecoderConfig", "LayerSpec"),
    "decoder.sampling": ("generate",),
    "rotary": ("Encoding", "nope", "p_rope", "parse", "rope"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_PACKAGES, *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"rope_study.{name}")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"rope_study.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'rope_study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
