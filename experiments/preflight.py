"""preflight: before a run, whether a model can answer the templates at all, and how it reads them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from elicit import builtin_tasks, choice, disjoint_pairs, rating, sample_tasks, templates
from elicit.templates import template
from interp import LocalModel
from store import Answer, Message, Outcome, Question

_TASKS_PER_ORIGIN = 2


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes
    ----------
    facts
        How the model reads a prompt.
    table
        One row per template: questions, mean and least mass on the options, share on format, and for choices the
        log-odds for the task shown first.
    tokens_per_second
        Speed of exact scoring, shared tokens counted as often as they were asked for.
    """

    facts: dict[str, str]
    table: pd.DataFrame
    tokens_per_second: float

    @property
    def screen(self) -> str:
        """What the command prints."""
        margin = max(map(len, self.facts)) + 2
        lines = [name.ljust(margin) + value for name, value in self.facts.items()]
        table = self.table.to_string(index=False, na_rep="", float_format="{:.2f}".format)
        bad = self.table[self.table["verdict"] != "ok"]
        advice = (
            "Every template can be answered."
            if bad.empty
            else f"{len(bad)} of {len(self.table)} templates get too little probability on their answers; most answers to them "
            "would be left out as off format."
        )
        return "\n".join([*lines, "", table, "", advice])


def preflight(model: LocalModel) -> Preflight:
    """Ask a few questions with every template, in both orders, and describe how the model reads them."""
    tasks = sample_tasks(builtin_tasks(), _TASKS_PER_ORIGIN, seed=0)
    pairs = disjoint_pairs([task.id for task in tasks], seed=0)
    rows, n_tokens, started = [], 0, time.monotonic()
    for wording in templates("choice"):
        for labels in choice.LABELS:
            asked = choice.questions(tasks, pairs, wording=wording, labels=labels)
            answers = model.score(asked)
            first = choice.comparisons(asked, answers)["logit"].mean()
            rows.append(_row("choice", wording, labels, answers) | {"first_logit": first})
            n_tokens += sum(len(model.render(question).token_ids) for question in asked)
    for scale in templates("rating"):
        asked = rating.questions(tasks, scale=scale)
        rows.append(_row("rating", scale, "", model.score(asked)) | {"first_logit": np.nan})
        n_tokens += sum(len(model.render(question).token_ids) for question in asked)
    speed = n_tokens / (time.monotonic() - started)
    return Preflight(_facts(model, speed), pd.DataFrame(rows), speed)


def _row(mode: str, name: str, labels: str, answers: Sequence[Answer]) -> dict[str, object]:
    masses = [answer.mass or 0.0 for answer in answers]
    on_format = float(np.mean([answer.outcome is Outcome.CHOSE for answer in answers]))
    return {
        "mode": mode,
        "template": name,
        "labels": labels,
        "questions": len(answers),
        "mean_mass": float(np.mean(masses)),
        "least_mass": min(masses),
        "minimum": template(mode, name).minimum_mass,
        "on_format": on_format,
        "verdict": "ok" if on_format >= 0.9 else "off format",
    }


def _facts(model: LocalModel, tokens_per_second: float) -> dict[str, str]:
    renderer, layout = model.renderer, model.engine.layout
    rendered = model.render(Question((Message("user", "Hello."),)))
    bos = "one, first in every prompt" if renderer.tokens.adds_bos else "none added; the chat template writes what is needed"
    return {
        "model": f"{model.identity.name} ({model.identity.family}), fingerprint {model.fingerprint[:16]}",
        "size": f"{model.n_layers} layers, residual stream {model.d_model}, {model.dtype} on {model.device}",
        "context": f"{model.context_length or 'unknown'} tokens",
        "chat template": "its own" if renderer.has_chat_template else "none; plain 'User:' and 'Assistant:' are written",
        "system prompt": {"system turn": "a turn of its own", "first user turn": "opens the first user turn"}[
            renderer.system_role
        ],
        "thinking": "can be turned on and off (off here)" if renderer.knows_thinking else "not known to the chat template",
        "BOS": bos,
        "end of turn": ", ".join(renderer.decode([token_id], special=True) for token_id in renderer.end_of_turn_ids) or "none",
        "batches": {"packed": "packed, shared prefixes run once"}.get(layout, f"padded on the {layout}"),
        "speed": f"{tokens_per_second:,.0f} tokens/s of questions",
        "a prompt": repr(rendered.text),
    }


def main(arguments: Sequence[str]) -> int:
    """Run `penchant preflight`; returns 0 if at least one template of each mode can be answered."""
    import tyro

    def command(
        model: tyro.conf.Positional[str] = "smollm2-135m",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
    ) -> LocalModel:
        """Say whether a model can answer the templates: on-format mass, order bias, system prompt, BOS, context, speed.

        Parameters
        ----------
        model
            Embedded model, folder with a checkpoint, or Hugging Face hub id.
        dtype
            Dtype of weights and residual stream.
        device
            auto, cpu, cuda, cuda:1, ...
        """
        return LocalModel.load(model, dtype=dtype, device=device)

    found = preflight(tyro.cli(command, args=list(arguments), prog="penchant preflight"))
    print(found.screen)
    return 0 if found.table.groupby("mode")["verdict"].agg(lambda verdicts: (verdicts == "ok").any()).all() else 1
