"""Layer patterns of released models: which layers are local, and how each encodes position.

Only attention is described: the rest of the decoder stays Gemma 1's. Released models that pair
dimensions (0, 1), (2, 3)... instead of (i, i + H/2) are the same up to a permutation of their
dimensions. `window` counts keys with the query's own, as transformers' sliding_window does.
"""

from rope_study.decoder.attention_scores import SoftCap
from rope_study.decoder.config import LayerSpec
from rope_study.decoder.norms import QKNorm, QKNormFixed
from rope_study.decoder.query_scaling import Llama4Temperature, LogitScale
from rope_study.registry import Registry
from rope_study.rotary import parse

Pattern = tuple[LayerSpec, ...]

PATTERNS = Registry("layer pattern")


@PATTERNS.add
def gemma2(
    window: int = 4096,
    local_rotary: str = "rope(theta=10_000)",
    global_rotary: str = "rope(theta=10_000)",
    cap: float = 50.0,
) -> Pattern:
    """Gemma 2 (2408.00118): local, global, with soft-capped logits. Local comes first."""
    local, far = parse(local_rotary), parse(global_rotary)
    return (
        LayerSpec(local, window, score_function=SoftCap(cap)),
        LayerSpec(far, score_function=SoftCap(cap)),
    )


@PATTERNS.add
def gemma3(
    window: int = 1024,
    local_rotary: str = "rope(theta=10_000)",
    global_rotary: str = "rope(theta=1_000_000)",
) -> Pattern:
    """Gemma 3 (2503.19786): five local layers and a global one, a base each, learned QK-norm.

    The 1B model has windows of 512; from 4B on the global layers also divide positions by 8
    (linear), which goes into `global_rotary`.
    """
    local, far = parse(local_rotary), parse(global_rotary)
    return (
        *[LayerSpec(local, window, qk_norm=QKNorm())] * 5,
        LayerSpec(far, qk_norm=QKNorm()),
    )


@PATTERNS.add
def gemma4(
    window: int = 1024,
    local_rotary: str = "rope(theta=10_000)",
    global_rotary: str = "p_rope(p=0.25, theta=1_000_000)",
) -> Pattern:
    """Gemma 4: as Gemma 3, but p-RoPE on the global layers only and logits q.k, not q.k / sqrt(H).

    Its last layer is always global: let the number of layers be a multiple of six. Its global
    layers have a wider head and share keys with values, and values are normalised: not here.
    """
    local, far = parse(local_rotary), parse(global_rotary)
    same = {"qk_norm": QKNorm(), "query_scale": LogitScale(1.0)}
    return (*[LayerSpec(local, window, **same)] * 5, LayerSpec(far, **same))


@PATTERNS.add
def irope(chunk: int = 8192, rotary: str = "rope(theta=500_000)", floor: int = 8192) -> Pattern:
    """iRoPE (Llama 4): three rotary layers in chunks, then NoPE over everything.

    Chunks are not windows: the first query of a chunk reads itself only. The rotary layers have
    QK-norm without a scale; the NoPE layer has none, and a temperature instead. In the released
    configuration no_rope_layers[i] = 1 means that layer i DOES rotate.
    """
    local = LayerSpec(parse(rotary), chunk=chunk, qk_norm=QKNormFixed())
    far = LayerSpec(parse("nope"), query_scale=Llama4Temperature(floor=floor))
    return (*[local] * 3, far)


@PATTERNS.add
def smollm3(rotary: str = "rope(theta=2_000_000)") -> Pattern:
    """SmolLM3: every fourth layer NoPE, all global. The same inverted flag as Llama 4."""
    return (*[LayerSpec(parse(rotary))] * 3, LayerSpec(parse("nope")))


@PATTERNS.add
def rnope_swa(window: int = 4096, rotary: str = "rope(theta=10_000)") -> Pattern:
    """RNoPE-SWA (2501.18795; Cohere 2, Command R7B): three local rotary layers, then global NoPE.

    A layer rotates exactly where it is local. The default base is that of transformers' class.
    """
    return (*[LayerSpec(parse(rotary), window)] * 3, LayerSpec(parse("nope")))
