"""Asking on: reasons before the answer, or a further question after it."""

from collections.abc import Sequence
from dataclasses import replace

from elicit.respondent import Respondent
from elicit.runner import ask
from store.measurements import MeasurementLog
from store.records import Answer, Message, Question, Sampling

START_OF_THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
REASON = "Before you answer, give your reasons in one or two sentences. Do not state the answer yet."


def reasoned(
    questions: Sequence[Question],
    respondent: Respondent,
    log: MeasurementLog | None = None,
    *,
    sampling: Sampling = Sampling(temperature=0, max_new_tokens=60),
) -> list[Question]:
    """The same questions with the respondent's own reasons put before the answer.

    Reasons are sampled; the answer given them can then be scored exactly. A question whose reasons failed is left out.
    """
    first = [
        replace(
            question,
            messages=(*question.messages[:-1], _with(question.messages[-1], REASON)),
            options=(),
            refusals=(),
            prefill="",
            minimum_mass=0.0,
            sampling=sampling,
            measures={**question.measures, "stage": "reasons"},
        )
        for question in questions
    ]
    made = []
    for question, answer in zip(questions, ask(first, respondent, log, description="reasons"), strict=True):
        if answer.text is not None:
            prefill = f"{answer.text.strip()}\n\n{question.prefill}"
            made.append(replace(question, prefill=prefill, measures={**question.measures, "reasons": answer.text.strip()}))
    return made


def thought_first(
    questions: Sequence[Question],
    respondent: Respondent,
    log: MeasurementLog | None = None,
    *,
    sampling: Sampling = Sampling(max_new_tokens=1024),
) -> list[Question]:
    """The same questions with the respondent's own thought put before the answer, which can then be scored exactly.

    The questions have `thinking=True`, for respondents whose chat template knows it. One whose thought does not end within
    the limit is left out. The thought is kept in `measures["thought"]`, apart from the answer.
    """
    first = [
        replace(question, options=(), refusals=(), prefill="", minimum_mass=0.0, sampling=sampling, thinking=True)
        for question in questions
    ]
    made = []
    for question, answer in zip(questions, ask(first, respondent, log, description="thoughts"), strict=True):
        opened, end, _ = (answer.text or "").partition(END_OF_THOUGHT)
        if end:
            thought = opened.replace(START_OF_THOUGHT, "").strip()
            prefill = f"{opened}{end}\n\n{question.prefill}"
            made.append(replace(question, prefill=prefill, thinking=True, measures={**question.measures, "thought": thought}))
    return made


def follow_up(
    asked: Sequence[Question], answers: Sequence[Answer], text: str, *, sampling: Sampling = Sampling()
) -> list[Question]:
    """A further question, such as "Why?", after every answer; of exact answers, after the likeliest option.

    What it follows is kept in `measures["follows"]`. Questions that failed are left out.
    """
    made = []
    for question, answer in zip(asked, answers, strict=True):
        said = answer.text if answer.text is not None else _likeliest(question, answer)
        if said is None:
            continue
        messages = (*question.messages, Message("assistant", (question.prefill + said).strip()), Message("user", text))
        made.append(
            Question(
                messages,
                question.spans,
                system=question.system,
                sampling=sampling,
                draw=question.draw,
                thinking=question.thinking,
                measures={**question.measures, "follow_up": text, "follows": said},
            )
        )
    return made


def _likeliest(question: Question, answer: Answer) -> str | None:
    if not answer.log_probs:
        return None
    label = max(answer.log_probs, key=answer.log_probs.__getitem__)
    return next(option.forms[0] for option in question.options if option.label == label)


def _with(message: Message, instruction: str) -> Message:
    return replace(message, content=f"{message.content}\n\n{instruction}")
