"""Fair timing: contestants take turns, so that a machine that slows down slows all of them."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from interp import LocalModel


def interleaved(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tqdm(total=repeats * len(contestants), desc="rounds", unit="run", disable=None) as progress:
        for number in range(repeats):
            names = list(contestants)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                started = time.perf_counter()
                contestants[name]()
                seconds[name].append(time.perf_counter() - started)
                progress.update()
    return seconds


def ratio(peer: list[float], ours: list[float]) -> tuple[float, tuple[float, float]]:
    """Median over rounds of the peer's seconds by ours, and the least and the greatest."""
    ratios = np.array(peer) / np.array(ours)
    return float(np.median(ratios)), (float(ratios.min()), float(ratios.max()))


def machine(model: LocalModel) -> str:
    """What it ran on, in words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {model.dtype} on {model.device}"


def result(bench: str, speedup: Mapping[str, float], spread: Mapping[str, tuple[float, float]], work: Any, where: str) -> str:
    """The last line of a benchmark."""
    return json.dumps({"bench": bench, "speedup": speedup, "spread": spread, "work": work, "machine": where})
