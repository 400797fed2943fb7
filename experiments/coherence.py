"""Coherence: whether what a steered model writes still makes sense, to the untouched model and in itself.

Off-format answers show only that a question is no longer answered. Here the same prompts are answered in free text, at every
dose: text that the untouched model finds improbable, or that goes round in circles, is no longer the model speaking.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from elicit import ask_views
from experiments.run_directory import RunDirectory
from interp import LocalModel
from store import Answer, Question, Sampling
from store.provenance import digest

MAX_DROP = 1.0
"""Nats per token by which steered text may be less probable to the untouched model than its own."""
MAX_REPETITION = 0.2
"""By how much more of a steered text may repeat what it said before."""
_GRAM = 3
_WORD = re.compile(r"\w+|[^\w\s]")


def repetition(text: str) -> float:
    """Share of a text's runs of three words or signs that stood in it before; NaN for a text of fewer."""
    words = _WORD.findall(text.lower())
    grams = list(zip(*(words[start:] for start in range(_GRAM)), strict=False))
    return 1 - len(Counter(grams)) / len(grams) if grams else np.nan


def free_questions(asked: Sequence[Question], n: int, max_new_tokens: int, seed: int) -> list[Question]:
    """Some of the questions, spread over all of them, to be answered in free text."""
    places = np.unique(np.linspace(0, len(asked) - 1, min(n, len(asked))).round().astype(int))
    sampling = Sampling(0.7, max_new_tokens=max_new_tokens, seed=seed)
    return [
        replace(
            asked[place],
            options=(),
            refusals=(),
            prefill="",
            sampling=sampling,
            measures={**asked[place].measures, "mode": "free text"},
        )
        for place in places
    ]


def texts_of(
    model: LocalModel,
    asked: Sequence[Question],
    views: Mapping[tuple[str, float], LocalModel],
    run: RunDirectory,
    description: str,
) -> pd.DataFrame:
    """What views write in answer to free questions, and how it reads.

    Parameters
    ----------
    model
        The untouched model, which says how probable the texts are.
    views
        By direction and dose.

    Returns
    -------
    Columns `direction, dose, prompt, text, log_likelihood, repetition`: the mean log-probability of a token in nats, and
    `repetition`; both are missing for an empty text.
    """
    answers = ask_views(asked, list(views.values()), run.log, description=description)
    rows = [
        {"direction": name, "dose": dose, "prompt": number, "text": (answer.text or "").strip()}
        for (name, dose), own in zip(views, answers, strict=True)
        for number, answer in enumerate(own)
    ]
    texts = pd.DataFrame(rows)
    repeated = [asked[number] for number in texts["prompt"]]
    key = digest(
        model.fingerprint, [model.prompt_digest(each) for each in asked], texts["text"].tolist(), texts["prompt"].tolist()
    )
    known = run.remembered(
        "log_likelihoods", key, lambda: {"values": _log_likelihoods(model, repeated, texts["text"].tolist())}
    )
    values = [np.nan if value is None else value for value in known["values"]]
    return texts.assign(log_likelihood=values, repetition=[repetition(text) for text in texts["text"]])


def _log_likelihoods(model: LocalModel, asked: Sequence[Question], texts: Sequence[str]) -> list[float | None]:
    return [float(each.mean()) if len(each) else None for each in model.log_likelihoods(asked, texts)]


def coherence_table(texts: pd.DataFrame) -> pd.DataFrame:
    """Means by direction and dose, their changes from dose 0 of the same prompts, and whether the text `makes_sense`.

    Returns
    -------
    Columns `direction, dose, log_likelihood, repetition, log_likelihood_change, repetition_change, empty, makes_sense`.
    """
    read = ["log_likelihood", "repetition"]
    zero = texts[texts["dose"] == 0].set_index(["direction", "prompt"])[read]
    keyed = texts.set_index(["direction", "prompt"])
    changes = (keyed[read] - zero.reindex(keyed.index)).add_suffix("_change")
    known = pd.concat([keyed, changes, (keyed["text"].str.strip() == "").rename("empty")], axis=1)
    table = known.groupby(["direction", "dose"], sort=False)
    means = table[[*read, *changes, "empty"]].mean().reset_index()
    dropped = means["log_likelihood_change"] < -MAX_DROP
    circling = means["repetition_change"] > MAX_REPETITION
    silent = means["log_likelihood"].isna()
    return means.assign(makes_sense=~(dropped | circling | silent))


def own_texts(model: LocalModel, asked: Sequence[Question], run: RunDirectory) -> list[str]:
    """What the untouched model itself writes in answer."""
    answers: list[list[Answer]] = ask_views(asked, [model], run.log, description="untouched texts")
    return [(answer.text or "").strip() for answer in answers[0]]
