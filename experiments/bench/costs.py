"""Costs: what the usual work takes in questions and tokens, counted; and in hours, memory, disk and money, reckoned.

Counts are of real prompts, as `--dry-run` counts them. Hours are arithmetic: a forward pass does two operations a weight and
token, and writing waits for the weights to be read from memory. Nothing is asked, and no GPU is needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from elicit import (
    Context,
    Task,
    builtin_tasks,
    choice,
    completion,
    disjoint_pairs,
    judge,
    load_tasks,
    rating,
    regular_pairs,
    task_question,
)
from interp import LocalModel
from interp.rehearsal import Count, RehearsedModel, Tally
from store import Question, Sampling

SCALES = (
    "yes_somewhat_no",
    "good_neutral_bad",
    "likert_5",
    "likert_agreement",
    "stated_5",
    "stated_10",
    "anchored_5",
    "bipolar_5",
)
DEGREES = (6, 20)
ACTIVE = (9, 18)
"""Prompts a task until the ranking settles: of the embedded model on 120 tasks, and of a simulated judge like it on 1,000."""
_DRAWS, _NEW_TOKENS = 4, 48
_STEERED_PAIRS, _DIRECTIONS, _DOSES = 50, 21, 4
"""Pairs of tasks, directions (two under test and nineteen random ones), and doses besides zero."""
_GB = 1e9


@dataclass(frozen=True)
class Shape:
    """What a cost depends on: parameters, blocks, widths, and the key-value heads with theirs."""

    parameters: float
    layers: int
    width: int
    inner: int
    kv_width: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one token leaves in the cache, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_width

    def batch_bytes(self, tokens: int) -> float:
        """Bytes at work in a pass over a batch in bfloat16: six rows of the stream's width and three of the inner, a token."""
        return 2.0 * tokens * (6 * self.width + 3 * self.inner)


MODELS: Mapping[str, Shape] = {
    "1B": Shape(1.24e9, 16, 2048, 8192, 512),
    "4B": Shape(4.02e9, 36, 2560, 9728, 1024),
    "8B": Shape(8.03e9, 32, 4096, 14336, 1024),
    "14B": Shape(14.8e9, 40, 5120, 17408, 1024),
    "32B": Shape(32.8e9, 64, 5120, 25600, 1024),
    "70B": Shape(70.6e9, 80, 8192, 28672, 1024),
}
"""Llama 3.2 1B, Qwen3 4B, Llama 3.1 8B, Qwen3 14B, Qwen3 32B, Llama 3.1 70B, by their published configurations."""


@dataclass(frozen=True)
class Assumptions:
    """What the hours rest on.

    Attributes
    ----------
    tflops, utilisation
        Of the GPU in bfloat16 without sparsity, and the share of it that reading reaches.
    bandwidth, share, batch
        Of the GPU's memory in TB/s, the share of it that writing reaches, and how many texts are written at once.
    """

    tflops: float = 800.0
    utilisation: float = 0.4
    bandwidth: float = 3.35
    share: float = 1 / 3
    batch: int = 32

    def read_per_second(self, shape: Shape) -> float:
        """Tokens read in a second."""
        return self.tflops * 1e12 * self.utilisation / (2 * shape.parameters)

    def written_per_second(self, shape: Shape, context: float) -> float:
        """Tokens written in a second, after texts of `context` tokens."""
        moved = 2 * shape.parameters + self.batch * context * shape.kv_bytes
        return self.batch * self.bandwidth * 1e12 * self.share / moved

    def hours(self, count: Count, shape: Shape) -> float:
        """Hours of one GPU."""
        seconds = count.tokens / self.read_per_second(shape)
        if count.new_tokens:
            context = (count.tokens + count.new_tokens / 2) / count.questions
            seconds += count.new_tokens / self.written_per_second(shape, context)
        return seconds / 3600


def counts(model: LocalModel, tasks: Sequence[Task], seed: int = 0) -> dict[str, Count]:
    """What each kind of work takes; the model only counts, and no answer is known."""
    ids = [task.id for task in tasks]
    found: dict[str, Count] = {}
    for degree in DEGREES:
        found[f"choices, degree {degree}"] = _count(model, choice.questions(tasks, regular_pairs(ids, degree, seed)))
    per_prompt = found[f"choices, degree {DEGREES[-1]}"]
    for prompts in ACTIVE:
        n = prompts * len(tasks)
        found[f"active learning, {prompts} prompts a task"] = Count(n, n, round(n * per_prompt.tokens / per_prompt.questions))
    for scales in (SCALES[:1], SCALES):
        asked = [question for scale in scales for question in rating.questions(tasks, scale=scale)]
        found[f"self-report, {len(scales)} scale{'s' if len(scales) > 1 else ''}"] = _count(model, asked)
    found[f"refusal, {_DRAWS} completions and a judge"] = _refusals(model, tasks, seed)
    found["capture"] = _capture(model, tasks)
    steered = choice.questions(tasks, disjoint_pairs(ids, seed)[:_STEERED_PAIRS])
    one = _count(model, steered)
    views = 1 + _DIRECTIONS * _DOSES
    found[f"steering, {len(steered) // 2} pairs"] = Count(one.questions * views, one.questions * views, one.tokens * views)
    return found


def _count(model: LocalModel, asked: Sequence[Question]) -> Count:
    tally = Tally()
    rehearsed = RehearsedModel(model, tally)
    rehearsed.score_together([(rehearsed, question) for question in asked])
    return _sum(tally)


def _refusals(model: LocalModel, tasks: Sequence[Task], seed: int) -> Count:
    tally = Tally()
    rehearsed = RehearsedModel(model, tally)
    context = Context(sampling=Sampling(1.0, max_new_tokens=_NEW_TOKENS, seed=seed), n_draws=_DRAWS)
    asked = completion.questions(tasks, context=context)
    answers = rehearsed.generate_together([(rehearsed, question) for question in asked])
    judged = judge.questions(completion.completions(asked, answers), criterion="refusal")
    rehearsed.score_together([(rehearsed, question) for question in judged])
    return _sum(tally)


def _capture(model: LocalModel, tasks: Sequence[Task]) -> Count:
    tokens = sum(len(model.render(task_question(task)).token_ids) for task in tasks)
    return Count(len(tasks), len(tasks), tokens)


def _sum(tally: Tally) -> Count:
    each = tally.counts.values()
    # Rehearsed calls are made directly, so that what is missing is what was asked for.
    return Count(*(sum(getattr(count, name) for count in each) for name in ("missing", "missing", "tokens", "new_tokens")))


def hours_table(found: Mapping[str, Count], factor: float, assumed: Assumptions) -> pd.DataFrame:
    """Questions, tokens and GPU-hours of each work on each model, with `factor` times as many tasks as were counted.

    A dose grid stays as it is: it does not grow with the tasks.
    """
    rows = []
    for work, count in found.items():
        times = 1.0 if work.startswith("steering") else factor
        row = {"work": work, "questions": times * count.questions, "tokens": times * count.tokens}
        row |= {"to write": times * count.new_tokens}
        rows.append(row | {name: times * assumed.hours(count, shape) for name, shape in MODELS.items()})
    return pd.DataFrame(rows)


def money_table(found: Mapping[str, Count], factor: float) -> pd.DataFrame:
    """Millions of tokens that a server is sent, and that it writes: times the price of each is what it costs.

    An exact answer is a request that writes one token; options of several tokens take several, which is not counted.
    """
    rows = []
    for work, count in found.items():
        if work.startswith(("capture", "steering")):
            continue
        exact = count.questions - count.new_tokens // _NEW_TOKENS
        written = count.new_tokens + exact
        rows.append({"work": work, "read": factor * count.tokens / 1e6, "written": factor * written / 1e6})
    return pd.DataFrame(rows)


def memory_table(tokens: int = 16_384) -> pd.DataFrame:
    """Gigabytes by model: weights in both dtypes, a batch of so many tokens at work, and their keys and values."""
    rows = [
        {
            "model": name,
            "weights bf16": 2 * shape.parameters / _GB,
            "weights f32": 4 * shape.parameters / _GB,
            "batch": shape.batch_bytes(tokens) / _GB,
            "cache, writing": tokens * shape.kv_bytes / _GB,
            "all bf16": (2 * shape.parameters + shape.batch_bytes(tokens) + tokens * shape.kv_bytes) / _GB,
        }
        for name, shape in MODELS.items()
    ]
    return pd.DataFrame(rows)


def disk_table(tasks: int) -> pd.DataFrame:
    """Gigabytes of an activation store with one position: one layer, three, and all, in bfloat16 and float32."""
    rows = []
    for name, shape in MODELS.items():
        row: dict[str, float | str] = {"model": name}
        for layers in (1, 3, shape.layers):
            for dtype, size in (("bf16", 2), ("f32", 4)):
                row[f"{'all' if layers == shape.layers else layers} {dtype}"] = tasks * layers * shape.width * size / _GB
        rows.append(row)
    return pd.DataFrame(rows)


def run(
    tasks: Sequence[Task], sizes: Sequence[int], assumed: Assumptions, seed: int = 0, model: LocalModel | None = None
) -> None:
    """Print the tables."""
    found = counts(model or LocalModel.load(), tasks, seed)
    tables = {f"GPU-hours, {size:,} tasks": hours_table(found, size / len(tasks), assumed) for size in sizes}
    tables |= {f"Millions of tokens of a server, {size:,} tasks": money_table(found, size / len(tasks)) for size in sizes}
    tables |= {f"Gigabytes on disk, {size:,} tasks, one position": disk_table(size) for size in sizes}
    tables |= {"Gigabytes of memory, 16,384 tokens a batch": memory_table()}
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(index=False, float_format=lambda value: f'{value:,.3g}')}")
    speeds = {name: assumed.read_per_second(shape) for name, shape in MODELS.items()}
    work = {"tasks": len(tasks), "counts": {name: asdict(count) for name, count in found.items()}, "read_per_second": speeds}
    print(json.dumps({"bench": "costs", "speedup": {}, "spread": {}, "work": work, "machine": asdict(assumed)}))


def main(arguments: Sequence[str]) -> None:
    """Count, reckon and print."""
    import tyro

    def command(
        tasks: Path | None = None,
        n: int | None = None,
        sizes: tuple[int, ...] = (1000, 10_000),
        tflops: float = Assumptions.tflops,
        utilisation: float = Assumptions.utilisation,
        bandwidth: float = Assumptions.bandwidth,
        share: float = Assumptions.share,
        batch: int = Assumptions.batch,
        seed: int = 0,
    ) -> None:
        """Count the questions and tokens of the usual work on real prompts, and reckon hours, memory and money.

        Parameters
        ----------
        tasks
            JSONL, CSV or Parquet of tasks; default: the built-in ones.
        n
            Count with the first so many of them.
        sizes
            Numbers of tasks to print tables for; questions and tokens are scaled from those counted.
        tflops
            Of the GPU in bfloat16: H100 756 to 989 by its form, H200 989, A100 312.
        utilisation
            Share of that which reading reaches.
        bandwidth
            Of the GPU's memory in TB/s: H100 3.35, H200 4.8, A100 2.
        share
            Share of that which writing reaches.
        batch
            Texts written at once.
        seed
            For the design.
        """
        chosen = (load_tasks(tasks) if tasks else builtin_tasks())[:n]
        run(chosen, sizes, Assumptions(tflops, utilisation, bandwidth, share, batch), seed)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench costs")
