"""The last stage of reading sampled text: a model says which answer a reply gives that no rule could read.

The rules of `elicit.parsing` come first. Only what they leave off format is judged; a refusal stays a refusal, and a
judge that is not sure leaves the answer as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

from elicit.respondent import Respondent
from elicit.runner import ask
from elicit.templates import surface_forms
from store.measurements import MeasurementLog
from store.records import END_OF_TURN, Answer, Message, Option, Outcome, Question, Span

NONE = "none of them"
_ASK = (
    "Somebody was asked a question and replied. The question ended like this:\n\n{question}\n\nThe reply was:\n\n{reply}\n\n"
    "Which of these answers did the reply give: {labels}, or none of them? Say only the answer."
)
_MOST_OF_QUESTION = 400
_ENDS = (END_OF_TURN, "\n", ".", ",")


def read_by_judge(
    asked: Sequence[Question],
    answers: Sequence[Answer],
    judge: Respondent,
    log: MeasurementLog | None = None,
    *,
    certainty: float = 0.8,
) -> list[Answer]:
    """Answers with those off format read again by a judge.

    Parameters
    ----------
    asked, answers
        Sampled answers to questions with options.
    judge
        Any respondent that can be scored; its probabilities are read exactly.
    certainty
        Least probability of one answer, among the answers and none of them, for it to count.

    Returns
    -------
    One answer a question, in their order; those that the judge could read have outcome `chose`.
    """
    if not 0.5 < certainty < 1:
        raise ValueError(f"certainty is {certainty}; expected a probability above 0.5 and below 1.")
    unread = [
        place
        for place, (question, answer) in enumerate(zip(asked, answers, strict=True))
        if answer.outcome is Outcome.OFF_FORMAT and question.options and (answer.text or "").strip()
    ]
    found = list(answers)
    judged = ask([_question(asked[place], found[place]) for place in unread], judge, log, description="judge of answers")
    for place, verdict in zip(unread, judged, strict=True):
        if verdict.outcome is not Outcome.CHOSE:
            continue
        label, probability = max(verdict.distribution().items(), key=lambda item: item[1])
        if label != NONE and probability >= certainty:
            found[place] = replace(found[place], outcome=Outcome.CHOSE, choice=label)
    return found


def _question(question: Question, answer: Answer) -> Question:
    labels = [option.label for option in question.options]
    # Where one label begins another, as 1 does 10, what follows it must be scored too.
    words = [*labels, "none"]
    ends = _ENDS if any(a != b and b.startswith(a) for a in words for b in words) else ()
    options = [Option(label, surface_forms(label), ends) for label in labels]
    values = {
        "question": question.messages[-1].content[-_MOST_OF_QUESTION:],
        "reply": (question.prefill + (answer.text or "")).strip(),
        "labels": ", ".join(labels),
    }
    text, spans = "", []
    for piece in _pieces(_ASK):
        if piece in values:
            spans.append(Span(piece, 0, len(text), len(text) + len(values[piece])))
        text += values.get(piece, piece)
    return Question(
        (Message("user", text),),
        tuple(span for span in spans if span.name != "labels"),
        (*options, Option(NONE, (*surface_forms(NONE), " None", " none"), ends)),
        prefill="Answer:",
        minimum_mass=0.25,
        measures={**question.measures, "mode": "judge", "template": "answer"},
    )


def _pieces(template: str) -> list[str]:
    """Fields and what stands between them; the values are put in verbatim."""
    return [piece for part in template.split("{") for piece in part.split("}")]
