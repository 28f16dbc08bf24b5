"""Preparation: files of any size in, a token store out, on all cores and within bounded memory.

One process reads the files and cuts them into blocks of whole records (`streams`, `formats`,
`wikipedia`); workers make tokens of a block (`encode`); what they give is appended in the order of
the input and written in a journal, from which a killed run goes on (`run`). So neither the number
of workers nor of shards changes a byte. A format is added in `formats.FORMATS`.
"""
