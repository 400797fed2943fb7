"""The runner: asks what the log does not know yet, writes every answer down as it comes, and reads them in order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tqdm import tqdm

from elicit.parsing import read_text
from elicit.respondent import OnAnswer, Respondent, SharedRespondent
from store.measurements import Entry, MeasurementLog, answer_key
from store.records import Answer, Question

_ANSWERS_PER_WRITE = 64


def ask(
    questions: Sequence[Question],
    respondent: Respondent,
    log: MeasurementLog | None = None,
    *,
    description: str = "ask",
) -> list[Answer]:
    """Answer every question, from the log where it was asked before.

    Parameters
    ----------
    questions
        Exact ones (no sampling) are scored, the others sampled and their text read.
    respondent
        A LocalModel, a steered view of one, or anything else with the same methods.
    log
        Where answers are kept; None keeps them for this call alone. An interrupted call loses at most the batch at work.
    description
        What the progress bar says.

    Returns
    -------
    One answer a question, in their order. A question that failed has outcome `error` and is asked again next time.
    """
    return ask_views(questions, [respondent], log, description=description)[0]


def ask_views(
    questions: Sequence[Question],
    respondents: Sequence[Respondent],
    log: MeasurementLog | None = None,
    *,
    description: str = "ask",
) -> list[list[Answer]]:
    """Put the same questions to several respondents, such as one model under many interventions.

    Views of one model are asked in shared batches where the respondent can do that.

    Returns
    -------
    For each respondent, its answers in the order of the questions.
    """
    log = MeasurementLog() if log is None else log
    keys = [
        [answer_key(view.fingerprint, view.prompt_digest(question), question) for question in questions] for view in respondents
    ]
    known = log.get([key for row in keys for key in row])
    missing: dict[str, tuple[Respondent, Question]] = {}
    for view, row in zip(respondents, keys, strict=True):
        for key, question in zip(row, questions, strict=True):
            if key not in known:
                missing.setdefault(key, (view, question))
    if missing:
        with tqdm(
            total=len(known) + len(missing), initial=len(known), desc=description, unit="question", disable=None
        ) as progress:
            known |= _ask_missing(missing, log, progress)
    return [[_read(question, known[key]) for key, question in zip(row, questions, strict=True)] for row in keys]


def _ask_missing(missing: dict[str, tuple[Respondent, Question]], log: MeasurementLog, progress: tqdm) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    unwritten: list[Entry] = []
    exact = [key for key, (_, question) in missing.items() if question.sampling is None]
    sampled = [key for key, (_, question) in missing.items() if question.sampling is not None]

    def flush() -> None:
        log.put(unwritten)
        unwritten.clear()

    def hear(keys: Sequence[str]) -> OnAnswer:
        def on_answer(number: int, answer: Answer) -> None:
            key = keys[number]
            respondent, question = missing[key]
            found[key] = answer
            progress.update()
            unwritten.append(Entry(key, respondent.fingerprint, question, _read(question, answer)))
            if len(unwritten) >= _ANSWERS_PER_WRITE:
                flush()

        return on_answer

    try:
        _put(exact, missing, hear, "score")
        _put(sampled, missing, hear, "generate")
    finally:
        flush()  # also on Ctrl-C: what was answered stays answered
    return found


def _put(keys: list[str], missing: dict[str, tuple[Respondent, Question]], hear, method: Literal["score", "generate"]) -> None:
    groups = _by_respondent(keys, missing)
    if len(groups) > 1 and isinstance(groups[0][0], SharedRespondent):
        getattr(groups[0][0], f"{method}_together")([missing[key] for key in keys], hear(keys))
        return
    for view, own in groups:
        getattr(view, method)([missing[key][1] for key in own], hear(own))


def _by_respondent(keys: Sequence[str], missing: dict[str, tuple[Respondent, Question]]) -> list[tuple[Respondent, list[str]]]:
    groups: dict[int, tuple[Respondent, list[str]]] = {}
    for key in keys:
        view = missing[key][0]
        groups.setdefault(id(view), (view, []))[1].append(key)
    return list(groups.values())


def _read(question: Question, answer: Answer) -> Answer:
    """What an answer implies for this question: derived anew on every read, so that the log holds only what was said."""
    if answer.log_probs:
        return Answer.exact(question, answer.raw_log_probs, answer.bounds, answer.spread)
    if answer.text is None or answer.error is not None:
        return answer
    # The end of the prefill is part of what was said: "I would rather do Task" makes an answer of "B rather than".
    start = question.prefill.rpartition("\n")[2]
    space = " " if start[-1:].isalnum() and answer.text[:1].isalnum() else ""
    outcome, choice = read_text(start + space + answer.text, question.options, truncated=answer.truncated)
    return replace(answer, outcome=outcome, choice=choice)
