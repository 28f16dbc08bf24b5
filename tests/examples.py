"""One spelling of every registered encoding, for heads of 16 dimensions and short texts."""

ENCODINGS = {
    "rope": "rope(theta=500_000)",
    "nope": "nope()",
    "p_rope": "p_rope(p=0.5)",
    "reversed_p_rope": "reversed_p_rope(p=0.5)",
    "partial_rope": "partial_rope(p=0.5)",
    "half_truncated_rope": "half_truncated_rope()",
    "hope": "hope(context=64)",
    "fope_clip": "fope_clip(context=64)",
    "proportional_rope": "proportional_rope(factor=2)",
    "linear_rope": "linear_rope(factor=2)",
    "ntk_rope": "ntk_rope(factor=2)",
    "dynamic_ntk_rope": "dynamic_ntk_rope(factor=2, context=8, length=16)",
    "yarn_rope": "yarn_rope(factor=4, context=64)",
    "longrope": "longrope((1, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 2, 2, 3, 3, 4), 8, 16, factor=2)",
    "llama3_rope": "llama3_rope()",
    "learned_rope": "learned_rope()",
    "fope": "fope(context=64)",
}
