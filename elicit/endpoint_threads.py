"""Several questions asked at a time, each answer heard in the caller's thread as soon as it is there."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed

from elicit.endpoint_chat import RefusedRequest
from elicit.endpoint_limits import BudgetReached, TryAgain
from elicit.endpoint_server import EndpointError
from elicit.respondent import OnAnswer
from store.records import Answer, Outcome, Question

_GIVE_UP_AFTER = 8
"""Questions in a row that fail after all tries: then the server is taken to be out of order."""


def answer_each(
    questions: Sequence[Question], answer: Callable[[Question], Answer], concurrency: int, on_answer: OnAnswer | None
) -> list[Answer]:
    """Answer all questions.

    Returns
    -------
    One answer a question, in their order; `error` where this question alone could not be answered.

    Raises
    ------
    EndpointError, BudgetReached
        The run cannot go on. Requests under way are waited for, and every answer that there is has been heard.
    """
    answers: dict[int, Answer] = {}
    failed_in_a_row = 0

    def hear(future: Future[Answer]) -> None:
        nonlocal failed_in_a_row
        found, passing = _result(future)
        answers[numbers[future]] = found
        if on_answer:
            on_answer(numbers[future], found)
        if found.outcome is not Outcome.ERROR:
            failed_in_a_row = 0
        failed_in_a_row += passing
        if failed_in_a_row >= _GIVE_UP_AFTER:
            raise EndpointError(f"{failed_in_a_row} questions in a row failed after all tries, the last with: {found.error}")

    with ThreadPoolExecutor(concurrency) as pool:
        numbers = {pool.submit(answer, question): number for number, question in enumerate(questions)}
        try:
            for future in as_completed(numbers):
                hear(future)
        except BaseException:  # also Ctrl-C
            pool.shutdown(cancel_futures=True)
            for future, number in numbers.items():
                if number not in answers and not future.cancelled() and future.exception() is None:
                    hear(future)
            raise
    return [answers[number] for number in range(len(questions))]


def _result(future: Future[Answer]) -> tuple[Answer, bool]:
    """An answer, or the failure of this question alone; and whether that may pass."""
    try:
        return future.result(), False
    except (EndpointError, BudgetReached, CancelledError):
        raise
    except (RefusedRequest, TryAgain) as failure:
        return Answer(Outcome.ERROR, error=str(failure)), isinstance(failure, TryAgain)
