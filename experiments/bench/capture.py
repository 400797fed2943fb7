"""Capturing residual streams into a store: against hand-written loops and other libraries, and in bfloat16 against float32."""

import copy
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from experiments.bench.readers import (
    POSITIONS,
    Peer,
    Rows,
    Work,
    hand_written,
    nnsight_trace,
    plain_loop,
    rows_of,
    steering_vectors_record,
    stored,
    transformer_lens_cache,
    unstored,
)
from experiments.bench.timing import interleaved, machine, ratio, result
from interp import LocalModel
from interp.backends.onednn import FastLinears
from store import ActivationStore, layer_name

_TOLERANCE = 1e-3
"""Most that a contestant's row may differ from ours, relative to its norm, in float32."""
_BOUND, _PLAIN = "hand-written bound", "plain loop"
_TARGETS = {_BOUND: 0.95, _PLAIN: 3.5}
_WRITING_TARGET = 0.03

Contestants = Mapping[str, Callable[[], ActivationStore | Rows]]


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    import tyro

    def command(
        model: str = "smollm2-135m",
        tasks: tuple[Path, ...] = (),
        prompts: int = 96,
        rounds: int = 5,
        peers: bool = True,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        shape: Literal["8b", "tiny"] | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        """Read residual streams of chat prompts, with penchant into a store and with others into memory.

        Two layers (0.5 and 0.75 of the depth) are read at each prompt's last token and as the mean over its task. penchant
        writes a new store in every round; everybody else keeps rows in memory. All give the same rows, which is checked.
        The hand-written bound has its own hooks, stops at the deepest layer, never runs the unembedding and sorts prompts
        by length into batches of 8, and so do nnsight and TransformerLens as far as they can; the plain loop takes all
        hidden states of the whole model, in batches of 16 as prompts arrive.

        Parameters
        ----------
        model
            Embedded model, folder with a checkpoint, or hub id.
        tasks
            Task files (.jsonl, .csv, .parquet), read from the start. Default: the built-in tasks.
        prompts
            How many. A GPU wants many more (2,000 with --shape 8b).
        rounds
            Contestants take turns in each.
        peers
            Also time nnsight, TransformerLens and, where it is installed, steering-vectors.
        device
            auto, cpu, cuda, ...
        dtype
            bfloat16: compare penchant in it with penchant in float32, in speed and in rows, instead of peers.
        shape
            8b: a random-weight Llama of that size in bfloat16 (needs a GPU), to see which share is reached of the
            arithmetic that plain matrix products reach in the same run. tiny: the same on a toy.
        tokens_per_batch
            penchant's; default: its own choice.
        """
        if shape is not None:
            from experiments.bench import utilisation

            utilisation.run(shape, tasks, prompts, rounds, device=device, tokens_per_batch=tokens_per_batch)
            return
        loaded = LocalModel.load(model, device=device, dtype="float32", tokens_per_batch=tokens_per_batch)
        if dtype == "bfloat16":
            coarse = LocalModel.load(model, device=device, dtype="bfloat16", tokens_per_batch=tokens_per_batch)
            run_precision(loaded, coarse, tasks, prompts, rounds)
        else:
            run(loaded, tasks, prompts, rounds, peers=peers)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench capture")


def run(model: LocalModel, files: Sequence[Path], prompts: int, rounds: int, *, peers: bool = True) -> None:
    """Time penchant, with and without storing, and every peer."""
    work = Work.of(model, files, prompts)
    with tempfile.TemporaryDirectory() as folder:
        ours, passing = "penchant", "penchant, nothing stored"
        contestants: Contestants = {
            ours: _storing(model, work, Path(folder)),
            passing: lambda: unstored(model, work),
            **{name: _reading(peer, work, model) for name, peer in _peers(model, work, peers).items()},
        }
        difference = _largest_difference(contestants, ours)
        seconds = interleaved(contestants, rounds)
    speed = {name: work.tokens / float(np.median(each)) for name, each in seconds.items()}
    compared = {name: ratio(each, seconds[ours]) for name, each in seconds.items()}
    rows = [
        {
            "contestant": name,
            "seconds": np.median(seconds[name]),
            "tokens_per_second": speed[name],
            "penchant is faster by": compared[name][0],
            "from": compared[name][1][0],
            "to": compared[name][1][1],
            "target": _TARGETS.get(name, np.nan),
            "largest difference": difference[name],
        }
        for name in contestants
    ]
    print(
        f"{len(work.prompts)} prompts, {work.tokens:,} tokens ({len(work.reach):,} with every shared prefix once), layers "
        f"{[layer_name(layer) for layer in work.layers]} of {model.n_layers}, positions {list(POSITIONS)}"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format, na_rep="-"))
    cost, (least, most) = ratio(seconds[ours], seconds[passing])
    writing = {"median": cost - 1, "from": least - 1, "to": most - 1, "target": _WRITING_TARGET}
    print(
        f"Writing adds {cost - 1:.1%} ({least - 1:.1%} to {most - 1:.1%}) to the same pass with nothing stored; "
        f"target: less than {_WRITING_TARGET:.0%}."
    )
    speedup = {name: compared[name][0] for name in contestants if name not in (ours, passing)}
    described = work.described() | {"rounds": rounds, "tokens_per_second": speed, "writing_adds": writing}
    described |= {"largest_difference": difference, "targets": _TARGETS}
    print(result("capture", speedup, {name: compared[name][1] for name in speedup}, described, machine(model)))


def run_precision(fine: LocalModel, coarse: LocalModel, files: Sequence[Path], prompts: int, rounds: int) -> None:
    """Compare penchant's captures in float32 and in bfloat16: their speed, and by how much rows differ."""
    if coarse.device.type == "cpu" and not _multiplies_bfloat16():
        print(
            "This processor has no instructions for bfloat16 (avx512_bf16, amx_bf16), so expect it to be slower than float32."
        )
    work = Work.of(fine, files, prompts)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {model.dtype: _storing(model, work, Path(folder)) for model in (fine, coarse)}
        found = {dtype: rows_of(capturing()) for dtype, capturing in contestants.items()}
        seconds = interleaved(contestants, rounds)
    error = _relative(found[coarse.dtype], found[fine.dtype])
    errors = [
        {"layer": layer_name(layer), "position": position, "median": np.median(each), "max": each.max()}
        for column, layer in enumerate(work.layers)
        for place, position in enumerate(POSITIONS)
        for each in [error[:, place, column]]
    ]
    speed = {dtype: work.tokens / float(np.median(each)) for dtype, each in seconds.items()}
    faster, spread = ratio(seconds[fine.dtype], seconds[coarse.dtype])
    print(f"{len(work.prompts)} prompts, {work.tokens:,} tokens; stored rows against float32's: |difference| / |row|")
    print(pd.DataFrame(errors).to_string(index=False, float_format="{:.4f}".format))
    print(
        f"bfloat16 {speed[coarse.dtype]:,.0f} tokens per second, float32 {speed[fine.dtype]:,.0f}: {faster:.2f} times as fast "
        f"({spread[0]:.2f} to {spread[1]:.2f}). Batches: {coarse.engine.layout} in bfloat16, {fine.engine.layout} in float32."
    )
    described = work.described() | {"rounds": rounds, "tokens_per_second": speed, "relative_error": errors}
    print(result("capture", {"penchant, float32": faster}, {"penchant, float32": spread}, described, machine(coarse)))


def _storing(model: LocalModel, work: Work, folder: Path) -> Callable[[], ActivationStore]:
    """A capture into a store that is new in every round."""
    numbers = itertools.count()
    return lambda: stored(model, work, folder / f"{model.dtype}-{next(numbers)}.h5")


def _reading(peer: Peer, work: Work, model: LocalModel) -> Callable[[], Rows]:
    return lambda: peer.read(work, model.device)


def _peers(model: LocalModel, work: Work, libraries: bool) -> dict[str, Peer]:
    """Everybody else, on copies of the weights that nobody else changes."""
    backend: Any = model.backend
    layers, tokenizer = work.layers, model.renderer._tokenizer
    plain = copy.deepcopy(backend.model).eval()
    blocks = plain.get_submodule(backend.blocks_path)
    found = {_BOUND: hand_written(plain, blocks, layers)}
    linears = FastLinears(plain)
    if linears._linears:
        found[f"{_BOUND}, penchant's kernels"] = hand_written(plain, blocks, layers, linears)
    found[_PLAIN] = plain_loop(plain, layers)
    if libraries:
        found["nnsight"] = nnsight_trace(plain, tokenizer, backend.blocks_path, layers)
        found["TransformerLens"] = transformer_lens_cache(plain, tokenizer, layers)
        try:
            found["steering-vectors"] = steering_vectors_record(plain, layers)
        except ImportError:
            print("steering-vectors takes no part, as it is not installed (pip install --no-deps steering-vectors).")
    return found


def _largest_difference(contestants: Contestants, ours: str) -> dict[str, float]:
    """Of every contestant's rows from ours, relative to their norms; this is also everybody's warm-up.

    Raises
    ------
    ValueError
        Somebody reads other rows.
    """
    rows = {name: rows_of(contestant()) for name, contestant in contestants.items()}
    found = {name: float(_relative(each, rows[ours]).max()) for name, each in rows.items()}
    if wrong := {name: round(each, 4) for name, each in found.items() if not each <= _TOLERANCE}:
        raise ValueError(f"These read other rows than penchant, by more than {_TOLERANCE} of their norm: {wrong}.")
    return found


def _relative(rows: Rows, reference: Rows) -> np.ndarray:
    fine, exact = rows.astype(np.float64), reference.astype(np.float64)
    return np.linalg.norm(fine - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def _multiplies_bfloat16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
