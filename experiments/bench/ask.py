"""Asking: exact scores of choices and ratings, against one plain forward pass a prompt and against lm-evaluation-harness."""

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from elicit import builtin_tasks, choice, load_tasks, rating
from experiments.bench.timing import interleaved, machine, ratio, result
from interp import LocalModel
from store import Option, Question

_SCALES = ("yes_somewhat_no", "good_bad", "good_neutral_bad", "adjectives", "fruits", "fruits_in_words", "likert_5", "stated_5")
_FIRST_IN = 10
_PEER_BATCHES = (1, 8)


@dataclass(frozen=True)
class Work:
    """Questions whose options are one token each, so that every contestant can score them."""

    name: str
    questions: list[Question]
    tokens: int
    distinct_tokens: int

    @property
    def bound(self) -> float:
        """How many times fewer tokens there are when every shared prefix is counted once."""
        return self.tokens / self.distinct_tokens


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    import tyro

    def command(
        model: str = "smollm2-135m",
        tasks: tuple[Path, ...] = (),
        pairs: int = 400,
        repeats: int = 5,
        device: str = "auto",
        seed: int = 0,
        work: tuple[Literal["choices", "ratings"], ...] = ("choices", "ratings"),
    ) -> None:
        """Score choices (each task shown first ten times) and ratings (each task on eight scales) exactly.

        Parameters
        ----------
        model
            Embedded model, folder with a checkpoint, or hub id.
        tasks
            Task files (.jsonl, .csv, .parquet). Default: the built-in tasks.
        pairs
            Number of pairs; a multiple of ten. As many ratings are asked.
        repeats
            Rounds; contestants take turns in each.
        device
            auto, cpu, cuda, ...
        seed
            Which tasks are drawn.
        work
            What is timed.
        """
        run(LocalModel.load(model, device=device), tasks, pairs, repeats, seed, work)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench ask")


def run(
    model: LocalModel,
    files: Sequence[Path],
    pairs: int,
    repeats: int,
    seed: int,
    kinds: Sequence[str] = ("choices", "ratings"),
) -> None:
    """Time every contestant on each kind of work."""
    make = {"choices": _choices, "ratings": _ratings}
    works = [make[kind](model, files, pairs, seed) for kind in kinds]
    plain = _plain_copy(model)
    speedup, spread, rows = {}, {}, []
    for work in works:
        contestants = _contestants(model, plain, work)
        difference = _largest_difference(contestants)
        names = [name for name in contestants if name != "penchant"]
        seconds = interleaved(contestants, repeats)
        for name in contestants:
            median, (least, most) = ratio(seconds[name], seconds["penchant"])
            rows.append(
                {
                    "work": work.name,
                    "contestant": name,
                    "seconds": float(np.median(seconds[name])),
                    "per_second": len(work.questions) / float(np.median(seconds[name])),
                    "penchant is faster by": median,
                    "from": least,
                    "to": most,
                    "largest difference": difference[name],
                }
            )
            if name in names:
                speedup[f"{work.name}: {name}"], spread[f"{work.name}: {name}"] = median, (least, most)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
    described = {}
    for work in works:
        described[work.name] = {
            "questions": len(work.questions),
            "tokens": work.tokens,
            "distinct_tokens": work.distinct_tokens,
            "bound": round(work.bound, 3),
        }
        reached = speedup[f"{work.name}: same kernels, no sharing"] / work.bound
        print(
            f"{work.name}: {work.tokens:,} tokens, {work.distinct_tokens:,} with every shared prefix once (bound "
            f"{work.bound:.2f}); sharing alone reaches {reached:.0%} of it."
        )
    print(result("ask", speedup, spread, described, machine(model)))


def _tasks(files: Sequence[Path], n: int, seed: int) -> list[Any]:
    tasks = [task for file in files for task in load_tasks(file)] or builtin_tasks()
    if n > len(tasks):
        raise ValueError(f"{n} tasks are needed and there are {len(tasks)}; ask for fewer pairs.")
    return [tasks[int(place)] for place in np.random.default_rng(seed).permutation(len(tasks))[:n]]


def _choices(model: LocalModel, files: Sequence[Path], pairs: int, seed: int) -> Work:
    """Pairs in which each of some tasks is shown first ten times."""
    n_first = pairs // _FIRST_IN
    tasks = _tasks(files, n_first + max(_FIRST_IN, n_first), seed)
    random = np.random.default_rng(seed)
    shown = [
        (tasks[first].id, tasks[n_first + int(second)].id)
        for first in range(n_first)
        for second in random.choice(len(tasks) - n_first, _FIRST_IN, replace=False)
    ]
    return _work("choices", model, choice.questions(tasks, shown, both_orders=False))


def _ratings(model: LocalModel, files: Sequence[Path], n: int, seed: int) -> Work:
    """Each task on eight scales, the task first so that the scales share it."""
    tasks = _tasks(files, n // len(_SCALES), seed)
    asked = [question for scale in _SCALES for question in rating.questions(tasks, scale=f"{scale},place=tasks_first")]
    return _work("ratings", model, asked)


def _work(name: str, model: LocalModel, asked: Sequence[Question]) -> Work:
    options = [_single_tokens(model, question) for question in asked]
    questions = [replace(q, options=single) for q, single in zip(asked, options, strict=True) if len(single) > 1]
    prompts = [tuple(model.render(question).token_ids.tolist()) for question in questions]
    prefixes = {prompt[: length + 1] for prompt in prompts for length in range(len(prompt))}
    return Work(name, questions, sum(map(len, prompts)), len(prefixes))


def _single_tokens(model: LocalModel, question: Question) -> tuple[Option, ...]:
    """Options in one form each, and of these the ones that are a single token here."""
    rendered = model.render(question)
    found = []
    for option in question.options:
        for form in (f" {option.label}", option.label):
            if len(model.renderer.tokens.continuation(rendered.text, form)) == 1:
                found.append(Option(option.label, (form,)))
                break
    return tuple(found)


def _plain_copy(model: LocalModel) -> Any:
    """The same weights in an untouched transformers model."""
    return copy.deepcopy(model.backend.model).eval()


Scores = list[dict[str, float]]


def _contestants(model: LocalModel, plain: Any, work: Work) -> dict[str, Callable[[], Scores]]:
    def ours() -> Scores:
        return [dict(answer.log_probs) for answer in model.score(work.questions)]

    def unshared() -> Scores:
        layout, model.engine.layout = model.engine.layout, "left"
        try:
            return ours()
        finally:
            model.engine.layout = layout

    found = {"penchant": ours, "same kernels, no sharing": unshared}
    for size in _PEER_BATCHES:
        found[f"transformers, batches of {size}"] = lambda size=size: _forward_passes(model, plain, work.questions, size)
    try:
        harness = _harness(model, plain)
    except ImportError:
        print("lm-eval is not installed (pip install -c constraints.txt '.[bench]'), so that comparison is left out.")
    else:
        found["lm-evaluation-harness"] = lambda: _loglikelihoods(harness, model, work.questions)
    return found


def _forward_passes(model: LocalModel, plain: Any, questions: Sequence[Question], size: int) -> Scores:
    """One forward pass a prompt, longest first, with the last logit only."""
    prompts = [model.render(question).token_ids for question in questions]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    scores: Scores = [{} for _ in questions]
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        width = max(len(prompts[number]) for number in numbers)
        ids = torch.zeros(len(numbers), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(numbers):
            ids[row, width - len(prompts[number]) :] = torch.from_numpy(prompts[number])
            mask[row, width - len(prompts[number]) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ids, mask, positions = (each.to(model.device) for each in (ids, mask, positions))
        with torch.inference_mode():
            logits = plain(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False).logits
        log_probs = logits[:, -1].float().log_softmax(-1)
        for row, number in enumerate(numbers):
            text = model.render(questions[number]).text
            for option in questions[number].options:
                (token,) = model.renderer.tokens.continuation(text, option.forms[0])
                scores[number][option.label] = float(log_probs[row, token])
    return scores


def _harness(model: LocalModel, plain: Any) -> Any:
    return importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=plain,
        tokenizer=model.renderer._tokenizer,
        backend="causal",
        batch_size=max(_PEER_BATCHES),
        add_bos_token=False,
        device=str(model.device),
    )


def _loglikelihoods(harness: Any, model: LocalModel, questions: Sequence[Question]) -> Scores:
    instance = importlib.import_module("lm_eval.api.instance").Instance
    requests, where = [], []
    for number, question in enumerate(questions):
        text = model.render(question).text
        for option in question.options:
            requests.append(
                instance(
                    request_type="loglikelihood", doc={}, arguments=(text, option.forms[0]), idx=0, metadata=("ask", number, 1)
                )
            )
            where.append((number, option.label))
    scores: Scores = [{} for _ in questions]
    for (number, label), (log_likelihood, _) in zip(where, harness.loglikelihood(requests, disable_tqdm=True), strict=True):
        scores[number][label] = log_likelihood
    return scores


def _largest_difference(contestants: dict[str, Callable[[], Scores]]) -> dict[str, float]:
    """Of every contestant's scores from ours; this is also everybody's warm-up."""
    scores = {name: contestant() for name, contestant in contestants.items()}
    return {
        name: max(
            abs(theirs[label] - ours[label]) for ours, theirs in zip(scores["penchant"], each, strict=True) for label in ours
        )
        for name, each in scores.items()
    }
