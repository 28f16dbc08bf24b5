"""One good call of every public function, on a decoder that computes in milliseconds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from random_parameters import random_parameters

from rope_study import checkpoints, data, decoder, figures, interventions, probes, rotary, sharding
from rope_study import theory as t
from rope_study.checkpoints import runs
from rope_study.data.document_windows import load_documents, take
from rope_study.data.store import Side
from rope_study.decoder import Decoder, presets
from rope_study.decoder.sampling import generate, generate_tokens
from rope_study.training.by_document import evaluate_documents
from rope_study.training.evaluate import evaluate

Calls = dict[str, tuple[Callable, dict[str, Any]]]
CONFIG = dataclasses.replace(presets.tiny(), layers=1, source="a model")
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 20)).astype(np.int32)
WEIGHTS = np.ones((2, 20), np.float32)
TEXT = TOKENS[0]
FAST = interventions.band(fastest=0.5)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder with parameters, and what was measured on it."""

    decoder: Decoder
    params: dict
    usage: Any
    patterns: Any
    attention: Any
    contributions: Any
    contribution_map: Any
    effects: Any
    losses: Any


def make_model() -> Model:
    """Compiles and runs what others draw."""
    model = Decoder(CONFIG, sharding.one_device()), random_parameters(CONFIG)
    batches = [(TOKENS, WEIGHTS)]
    both = [probes.frequency_usage, probes.head_patterns()]
    measured = probes.run(*model, batches, both, text="a text")
    nothing = {"nothing": interventions.ablate(FAST)}
    return Model(
        *model,
        measured["frequency_usage"],
        measured["head_patterns"],
        probes.attention_map(*model, TEXT, 0, 0),
        probes.contributions(*model, TEXT, 0, 0, 3, 1),
        probes.contribution_map(*model, TEXT, 0, 0),
        interventions.measure(*model, batches, nothing, copies=2, copy_length=4),
        _losses(model),
    )


def _losses(model: tuple[Decoder, dict]) -> Any:
    """Of two documents under two encodings."""
    tokens = np.concatenate([np.insert(row, 0, 256) for row in TOKENS]).astype(np.uint16)
    documents = take(Side(tokens, np.array([0, 21])), bos=256, name="a text")
    return evaluate_documents({"rope": model, "again": model}, documents, [8, 16])


def write_files(model: Model, folder: Path) -> None:
    """What the calls read: run/, tokenizer/, texts/ and text.txt."""
    write_run(folder / "run", model.params)
    for name in ("tokenizer", "texts"):
        (folder / name).mkdir()
    data.ByteTokenizer().export(folder / "tokenizer")
    for i in range(30):
        (folder / "texts" / f"{i}.txt").write_text(f"Document {i} says {i} words.")
    (folder / "text.txt").write_text("One paragraph.\n\nAnother.")


def write_run(folder: Path, params: dict) -> None:
    """A run of CONFIG that has saved its parameters."""
    (folder / runs.CHECKPOINTS).mkdir(parents=True)
    runs.write_model(folder, CONFIG, data.ByteTokenizer())
    with runs.Manager(folder) as manager:
        manager.save(1, {runs.PARAMS: params})


def calls(model: Model, folder: Path) -> Calls:
    """By public name the function and its arguments; the folder holds `write_files`."""
    return {
        **_calls_of_decoder(model, folder),
        **_calls_of_probes(model, folder),
        **_calls_of_interventions(model),
        **_calls_of_training(model, folder),
        **_calls_of_data(folder),
        **_calls_of_theory(),
        **_calls_of_figures(model),
        **_calls_of_encodings(),
    }


def _calls_of_decoder(model: Model, folder: Path) -> Calls:
    of = {"decoder": model.decoder, "params": model.params}
    golden = {"tokens": TOKENS, "embedding": np.ones((2, 20, 32))}
    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    run = {"path": folder / "run"}
    loaded = run | {"rotary": "nope", "dtype": "float32", "mesh": "fsdp=-1", "step": 1}
    text = {"tokenizer": data.ByteTokenizer(), "texts": ["To be"], "tokens": 2}
    exported = of | {"folder": folder / "exported", "shard_bytes": 10**9}
    ids = {"prompts": TOKENS, "lengths": np.array([20, 20]), "tokens": 2}
    return {
        "checkpoints.load": (checkpoints.load, loaded),
        "checkpoints.load_config": (checkpoints.load_config, run),
        "checkpoints.load_tokenizer": (checkpoints.load_tokenizer, run | {"tokenizer": "bytes"}),
        "checkpoints.export": (checkpoints.export, exported),
        "checkpoints.compare": (checkpoints.compare, of | {"golden": golden, "tolerance": 1e-3}),
        "decoder.DecoderConfig": (decoder.DecoderConfig, fields),
        "decoder.sampling.generate": (generate, of | text | {"temperature": 1.0, "seed": 0}),
        "decoder.sampling.generate_tokens": (generate_tokens, of | ids),
        "sharding.make_layout": (sharding.make_layout, {"mesh": "fsdp=-1"}),
        "sharding.Rules": (sharding.Rules, {"batch": "data,fsdp", "embed": ("fsdp",)}),
    }


def _calls_of_probes(model: Model, folder: Path) -> Calls:
    of = {"decoder": model.decoder, "params": model.params}
    text = of | {"tokens": TEXT}
    labelled = text | {"pieces": [str(i) for i in TEXT]}
    head = {"layer": 0, "head": 0}
    p, usage = probes, {"usage": model.usage}
    batches = {"batches": [(TOKENS, WEIGHTS)]}
    ids = {"delimiters": [1, 2], "window": 4, "minimum": 8}
    probe = {"name": "x", "reads": ("q",), "measure": lambda activations, weights: activations}
    place = text | {"place": 2, "replacement": 5}
    return {
        "decoder.Probe": (p.Probe, probe),
        "probes.attention_map": (p.attention_map, labelled | head),
        "probes.attention_maps": (p.attention_maps, labelled),
        "probes.contribution_map": (p.contribution_map, text | head),
        "probes.contributions": (p.contributions, text | head | {"query": 3, "key": 1}),
        "probes.delimiter_ids": (p.delimiter_ids, {"tokenizer": data.ByteTokenizer()}),
        "probes.head_patterns": (p.head_patterns, ids),
        "probes.massive_values": (p.massive_values, {"factor": 5.0}),
        "probes.name_heads": (p.name_heads, {"patterns": model.patterns, "threshold": 0.5}),
        "probes.perturbation_spread": (p.perturbation_spread, place),
        "probes.representational_collapse": (
            p.representational_collapse, text | {"lengths": [2, 20]},
        ),
        "probes.rotary_outliers": (p.rotary_outliers, {"factor": 2.0}),
        "probes.run": (p.run, of | batches | {"probes": [p.frequency_usage], "text": "a text"}),
        "probes.save": (p.save, {"dataset": model.usage, "path": folder / "usage.nc"}),
        "probes.sinks": (p.sinks, {"place": 0, "thresholds": (0.3,), "bins": 4}),
        "probes.slow_bands": (p.slow_bands, usage | {"name": "k"}),
        "probes.spectral": (p.spectral, {"length": 8, "window": "hann"}),
        "probes.token_influence": (p.token_influence, labelled),
    }  # fmt: skip


def _calls_of_interventions(model: Model) -> Calls:
    of = {"decoder": model.decoder, "params": model.params}
    batches = {"batches": [(TOKENS, WEIGHTS)]}
    edits = {"interventions": {"fast": interventions.ablate(FAST)}}
    band, numbers = {"band": FAST}, {"layers": [0], "heads": [0, 1]}
    usage, copies = {"usage": model.usage}, {"copies": 2, "copy_length": 4, "seed": 0}
    repeated = batches | {"copies": 2, "length": 4, "seed": 0}
    chain = {"config": CONFIG, "interventions": [interventions.ablate(FAST)]}
    i = interventions
    return {
        "interventions.Band.in_heads": (FAST.in_heads, {"name": "some", "heads": [(0, 1)]}),
        "interventions.ablate": (i.ablate, band | numbers | {"on": "q"}),
        "interventions.band": (i.band, {"cycles": (0.5, 2.0), "context": 64}),
        "interventions.band fastest": (i.band, {"fastest": 0.5}),
        "interventions.band frequencies": (i.band, {"frequencies": (0.1, 0.5)}),
        "interventions.band indices": (i.band, {"indices": [0, 1]}),
        "interventions.band_share": (i.band_share, usage | band),
        "interventions.edit": (i.edit, chain),
        "interventions.measure": (i.measure, of | batches | edits | copies),
        "interventions.pair_products": (i.pair_products, usage),
        "interventions.permute": (i.permute, band | numbers | {"order": [1, 0]}),
        "interventions.random_band": (i.random_band, usage | band | {"seed": 0}),
        "interventions.repeated_sequences": (i.repeated_sequences, repeated),
        "interventions.rescale": (i.rescale, band | numbers | {"factor": 0.5, "on": ["q"]}),
        "interventions.token_losses": (i.token_losses, of | {"batches": [TOKENS]} | edits),
        "interventions.unrotate": (i.unrotate, band | numbers),
    }


def _calls_of_training(model: Model, folder: Path) -> Calls:
    documents = load_documents(str(folder / "texts"), data.ByteTokenizer(), 2)
    models = {"rope": (model.decoder, model.params)}
    batches = {"batches": [(TOKENS, WEIGHTS)]}
    cut = {"models": models, "documents": documents, "lengths": [8, 16]}
    return {
        "training.evaluate.evaluate": (
            evaluate, {"decoder": model.decoder, "params": model.params} | batches,
        ),
        "training.by_document.evaluate_documents": (
            evaluate_documents, cut | {"across": "joined", "batch_size": 2},
        ),
    }  # fmt: skip


def _calls_of_data(folder: Path) -> Calls:
    stream = {"tokens": np.arange(200).astype(np.uint16), "length": 8, "bos": 256}
    batches = stream | {"batch_size": 4}
    documents = {"documents": [f"document {i}" for i in range(30)]}
    settings = {"path": str(folder / "texts"), "tokenizer": "bytes", "held_out": 0.3}
    settings |= {"length": 8, "batch_size": 2}
    sides = {"train": documents["documents"], "held_out": documents["documents"]}
    d, encode = data, data.ByteTokenizer()
    return {
        "data.ByteTokenizer.decode": (encode.decode, {"ids": [72, 73]}),
        "data.ByteTokenizer.encode": (encode.encode, {"text": "To be"}),
        "data.ByteTokenizer.encode_batch": (
            encode.encode_batch, {"texts": ["To be", "or not"], "length": 4},
        ),
        "data.ByteTokenizer.pieces": (encode.pieces, {"ids": np.array([72, 73])}),
        "data.DataSettings": (d.DataSettings, settings),
        "data.HuggingFaceTokenizer": (
            d.HuggingFaceTokenizer, {"path": folder / "tokenizer" / "tokenizer.json"},
        ),
        "data.TrainBatches": (d.TrainBatches, batches | {"seed": 0}),
        "data.TrainBatches.rows": (
            d.TrainBatches(**batches, seed=0).rows, {"step": 0, "start": 0, "stop": 2},
        ),
        "data.Windows": (d.Windows, stream),
        "data.fingerprint": (d.fingerprint, sides),
        "data.held_out_batches": (d.held_out_batches, batches | {"max_windows": 3}),
        "data.load_corpus": (lambda **fields: d.load_corpus(d.DataSettings(**fields)), settings),
        "data.document_windows.load_documents": (load_documents, {
            "path": str(folder / "texts"), "tokenizer": encode, "most": 2, "held_out": 0.3,
        }),
        "data.load_texts": (d.load_texts, {"source": folder / "text.txt"}),
        "data.load_tokenizer": (d.load_tokenizer, {"spec": folder / "tokenizer"}),
        "data.pieces": (d.pieces, documents),
        "data.read_documents": (d.read_documents, {"path": folder / "texts"}),
        "data.split": (d.split, documents | {"held_out": 0.3}),
        "data.tokenize": (d.tokenize, documents | {"tokenizer": encode}),
    }  # fmt: skip


def _calls_of_theory() -> Calls:
    query, key, other = np.random.default_rng(0).standard_normal((3, 8))
    rates, last = {"encoding": np.array([1.0, 0.1, 0.01, 0.001])}, np.array([1.0, 0.1, 0.0, 0.0])
    at = {"distances": np.arange(4)}
    head = {"query": query, "target": key, "other": other} | rates
    spread = {"frequencies": [1.0, 0.1], "context": 16, "offset": 1, "shares": [0.5, 0.5]}
    normed = spread | {"epsilon": 0.1, "scale": 1.0}
    drawn = rates | at | {"head_dim": 8, "samples": 10, "seed": 0, "confidence": 0.9}
    peak = rates | {"query": query, "distance": 3}
    layer = {"config": CONFIG, "params": random_parameters(CONFIG), "tokens": [0, 1, 1]}
    search = {"frequencies": [1.0, 0.1], "margins": (0.0, -0.1), "heads": 3, "limit": 64, "seed": 0}
    random = {"encoding": rotary.nope(), "seed": 0, "weight_scale": 1.0}
    floor = {"context": 16, "epsilon": 0.1, "offset": 1, "scale": 1.0}
    return {
        "theory.activations": (t.activations, {"query": query, "key": key} | rates | at),
        "theory.fig_2a": (t.fig_2a, rates | at | {"head_dim": 8}),
        "theory.first_layer_attention": (t.first_layer_attention, layer),
        "theory.prop_3_1": (t.prop_3_1, peak | {"context": 8}),
        "theory.prop_3_1_key": (t.prop_3_1_key, peak),
        "theory.prop_3_2": (t.prop_3_2, drawn),
        "theory.prop_5_2": (t.prop_5_2, random),
        "theory.rotate_key": (t.rotate_key, rates | {"x": query, "distance": 3}),
        "theory.sec_6_1_channel": (t.sec_6_1_channel, {"encoding": last, "head_dim": 8}),
        "theory.thm_5_3_attention": (t.thm_5_3_attention, spread | {"norm": 2.0, "scale": 1.0}),
        "theory.thm_5_3_context": (t.thm_5_3_context, {"frequency": 0.1, "offset": 1}),
        "theory.thm_5_3_floor": (t.thm_5_3_floor, floor),
        "theory.thm_5_3_gaps": (t.thm_5_3_gaps, spread),
        "theory.thm_5_3_norm": (t.thm_5_3_norm, normed),
        "theory.thm_5_3_norm_bounds": (t.thm_5_3_norm_bounds, normed),
        "theory.thm_6_1": (t.thm_6_1, head | {"limit": 64, "margin": 0.1}),
        "theory.thm_6_1_bound": (t.thm_6_1_bound, {"frequency": 0.1}),
        "theory.thm_6_1_bound_any_dimension": (
            t.thm_6_1_bound_any_dimension, head | {"margin": 0.1},
        ),
        "theory.thm_6_1_pairs": (t.thm_6_1_pairs, rates | {"head_dim": 8, "context": 16}),
        "theory.thm_6_1_reversal_bound": (
            t.thm_6_1_reversal_bound, {"frequency": 1.0, "reversal": 0.5},
        ),
        "theory.thm_6_1_search": (t.thm_6_1_search, search),
        "theory.thm_6_1_visits": (t.thm_6_1_visits, {"frequency": 1.0, "arc": 0.5}),
    }  # fmt: skip


def _calls_of_figures(model: Model) -> Calls:
    f, usage, named = figures, {"usage": model.usage}, probes.name_heads(model.patterns)
    several = {"usages": {"a": model.usage, "b": model.usage}}
    rows = [{"name": "rope"}, {"name": "nope", "difference": 0.1, "difference_se": 0.01}]
    bands = {"attention": model.attention, "contribution": model.contribution_map}
    bands |= {"bands": {"fast": [0, 1]}}
    curves = {"a": (np.arange(3), np.array([3.0, 2.0, 1.0]))}
    drawn = {"seed": 0, "head_dim": 8}
    decay = drawn | {"theta": 100.0, "distances": [0, 1, 2], "samples": 3}
    numbers = {"numbers": (1, 2), "slowest": 0.1, "reversals": (0.0, 0.5), "heads": 2}
    numbers |= {"limit": 100, "seed": 0}
    built = {"frequency": 1.0, "offset": 1, "tokens": 6, "epsilon": 0.1}
    effects = {"effects": model.effects, "pattern": "previous"}
    cycles = {"encodings": ["rope", "nope"], "head_dim": 8, "context": 64}
    turned = {"encoding": rotary.rope(), "head_dim": 8, "tokens": 8}
    by_pair = {"contribution": model.contribution_map}
    kinds = ("layer", [0] * model.usage.sizes["layer"])
    by_step = {"usage": model.usage.expand_dims(step=[0, 5]).assign_coords(kind=kinds)}
    return {
        "figures.attention_by_band": (f.attention_by_band, bands),
        "figures.attention_patterns": (f.attention_patterns, {"maps": {"a": model.attention}}),
        "figures.bands_over_steps": (f.bands_over_steps, by_step),
        "figures.construction": (f.construction, built),
        "figures.decay": (f.decay, decay),
        "figures.encoding_cycles": (f.encoding_cycles, cycles),
        "figures.first_token_by_pair": (f.first_token_by_pair, by_pair),
        "figures.head_kinds": (f.head_kinds, {"named": named}),
        "figures.head_usage": (f.head_usage, usage | {"heads": {"a": (0, 1)}}),
        "figures.intervention_effects": (f.intervention_effects, effects),
        "figures.logit_by_pair": (f.logit_by_pair, {"contributions": model.contributions}),
        "figures.loss_by_position": (f.loss_by_position, {"evaluation": model.losses}),
        "figures.loss_curves": (f.loss_curves, {"curves": curves}),
        "figures.norms_by_head": (f.norms_by_head, usage | {"layer": 0}),
        "figures.norms_by_layer": (f.norms_by_layer, usage),
        "figures.paired_differences": (f.paired_differences, {"rows": rows}),
        "figures.prop_3_1": (f.prop_3_1, drawn | {"distances": (0, 2), "context": 8}),
        "figures.prop_3_2": (f.prop_3_2, drawn | {"context": 8, "samples": 10}),
        "figures.slow_bands": (f.slow_bands, several),
        "figures.thm_5_3": (f.thm_5_3, {"contexts": (4, 8), "epsilon": 0.1, "head_dim": 4}),
        "figures.thm_6_1": (f.thm_6_1, {"frequencies": [0.5, 1.0]}),
        "figures.thm_6_1_by_number": (f.thm_6_1_by_number, numbers),
        "figures.turning": (f.turning, turned),
        "figures.usage_by_domain": (f.usage_by_domain, several),
        "figures.usage_side_by_side": (f.usage_side_by_side, several),
        "figures.value_norms": (f.value_norms, usage),
    }


def _calls_of_encodings() -> Calls:
    r = rotary
    made = [maker.example() for maker in r.ENCODINGS.values()]
    moved = {"x": np.ones((2, 4)), "source": "half_split", "target": "interleaved"}
    return {f"rotary.{type(e).__name__}": (type(e), e.arguments()) for e in made} | {
        "rotary.PinnedRope": (r.PinnedRope, {"frequencies": (1.0, 0.1)}),
        "rotary.convert_layout": (r.convert_layout, moved),
        "rotary.describe": (r.describe, {"encoding": "rope", "head_dim": 8, "context": 64}),
        "rotary.p_star": (r.p_star, {"context": 64, "theta": 100.0}),
        "rotary.pair_count": (r.pair_count, {"head_dim": 8}),
        "rotary.parse": (r.parse, {"text": "p_rope(p=0.5)"}),
    }
