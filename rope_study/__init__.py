"""rope_study: what the rotary frequencies of a decoder do, and what they should be."""

__version__ = "0.1.0"
