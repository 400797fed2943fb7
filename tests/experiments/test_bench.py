"""Benchmarks run, their contestants agree, and their last line is what programs read."""

import json
from itertools import accumulate

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.bench import ask, capture, readers, store, utilisation
from experiments.bench.__main__ import main
from interp import LocalModel
from tests.conftest import CHATML, SHAPE, tiny, tiny_tokenizer


def six_blocks(dtype: torch.dtype = torch.float32) -> LocalModel:
    """A tiny model whose last block is not among the layers read: a plain loop sees that one after the final norm only."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, vocab_size=500, num_hidden_layers=6, max_position_embeddings=512, initializer_range=0.3)
    return LocalModel(LlamaForCausalLM(config).to(dtype), tiny_tokenizer(CHATML), name="tiny")


def printed(capsys) -> tuple[str, dict]:
    """Everything before the last line, and what the last line holds."""
    *table, last = capsys.readouterr().out.strip().splitlines()
    return "\n".join(table), json.loads(last)


def test_asking_is_benchmarked_against_peers_that_get_the_same_scores(capsys):
    ask.run(tiny("llama"), files=(), pairs=20, repeats=2, seed=0)
    table, found = printed(capsys)
    assert found["bench"] == "ask" and found["speedup"].keys() == found["spread"].keys()
    assert found["work"]["choices"]["questions"] == 20 and found["work"]["choices"]["bound"] > 1.1
    differences = [float(line.split()[-1]) for line in table.splitlines() if line.strip().startswith(("choices ", "ratings "))]
    assert len(differences) >= 8 and max(differences) < 1e-4


def test_capturing_is_benchmarked_against_peers_that_read_the_same_rows(capsys):
    capture.run(six_blocks(), (), prompts=8, rounds=2)
    table, found = printed(capsys)
    peers = {"hand-written bound", "plain loop", "nnsight", "TransformerLens"}
    assert found["bench"] == "capture" and peers <= found["speedup"].keys() == found["spread"].keys()
    differences = found["work"]["largest_difference"]
    assert found["speedup"].keys() <= differences.keys() and differences["plain loop"] > 0
    assert max(differences.values()) < 1e-4
    assert found["work"]["layers"] == [3, 4] and "Writing adds" in table
    assert found["work"]["distinct_tokens"] < found["work"]["tokens"]


def test_a_contestant_that_reads_other_rows_is_found_out():
    rows = np.ones((3, 2, 2, 4), dtype=np.float32)
    with pytest.raises(ValueError, match=r"'theirs': 0\.01"):
        capture._largest_difference({"ours": lambda: rows, "theirs": lambda: rows * 1.01}, "ours")


def test_bfloat16_is_faster_or_slower_but_not_the_same(capsys):
    capture.run_precision(six_blocks(), six_blocks(torch.bfloat16), (), prompts=6, rounds=1)
    _, found = printed(capsys)
    assert found["work"]["tokens_per_second"].keys() == {"float32", "bfloat16"}
    errors = found["work"]["relative_error"]
    assert len(errors) == 4 and all(1e-3 < each["median"] <= each["max"] < 1 for each in errors)


def test_the_arithmetic_counted_is_what_the_rows_need(capsys):
    utilisation.run("tiny", (), prompts=6, rounds=1)
    _, found = printed(capsys)
    assert 0 < found["work"]["utilisation"]["penchant"]["median"] < 1
    model = utilisation.random_llama("tiny", "cpu")
    work = readers.Work.of(model, (), 6)
    prefixes = {prefix for prompt in work.prompts for prefix in accumulate((int(t),) for t in prompt)}
    assert sorted(map(len, prefixes)) == sorted(work.reach)
    linear = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128
    expected = sum(5 * (2 * linear + 4 * 64 * len(prefix)) for prefix in prefixes)  # of six blocks, the last is not run
    assert found["work"]["flops"] == utilisation.needed_flops(model, work) == expected


def test_a_shape_that_needs_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU, and there is none here"):
        main(["capture", "--shape", "8b"])


def test_stores_are_benchmarked_against_readers_of_the_same_numbers(capsys):
    store.run(rows=300, width=48, layers=3, written=130, rounds=(2, 1))
    table, found = printed(capsys)
    assert found["bench"] == "store" and found["speedup"].keys() == found["spread"].keys()
    assert found["work"]["targets"].keys() <= found["speedup"].keys()
    assert len(found["work"]["rows_written_per_second"]) == 3 and "300 scattered rows" in table
    wrong = store.Comparison("work", {"penchant": lambda: np.zeros(3), "theirs": lambda: np.ones(3)}, {})
    with pytest.raises(ValueError, match="'theirs'"):
        store._check(wrong)


def test_unknown_benchmarks_are_named(capsys):
    assert main(["aks"]) == 1
    assert "There is no benchmark 'aks'" in capsys.readouterr().out
    assert main([]) == 0
