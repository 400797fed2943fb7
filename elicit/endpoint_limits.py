"""How much and how fast a server is asked: budgets in tokens and money, pauses that it asks for, more tries after failures."""

import email.utils
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep, time
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more (a daily quota) is not waited for."""
_FIRST_WAIT, _SLOWEST = 0.5, 60.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BudgetReached(ValueError):
    """The next request would pass the budget. What was answered is kept; running again goes on from there."""


class TryAgain(Exception):
    """A failure that may pass.

    Parameters
    ----------
    reason
        For people.
    wait
        Seconds that the server asks for, if it says.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class Bill:
    """Tokens of one request: what it is thought to take, then what it took."""

    read: int
    written: int


class Budget:
    """What may be spent, and what was. Shared by the threads of one endpoint, and by models of one server in a run.

    Parameters
    ----------
    tokens, usd
        The most that may be spent; None for no limit.
    price_per_million
        US dollars for a million tokens read and written.
    """

    def __init__(self, tokens: int | None, usd: float | None, price_per_million: tuple[float, float] | None) -> None:
        if usd is not None and price_per_million is None:
            raise ValueError(f"budget_usd is {usd}, but nothing says what tokens cost; give price_per_million=(read, written).")
        self.tokens, self.usd = tokens, usd
        self._prices = price_per_million or (0.0, 0.0)
        self._lock = threading.Lock()
        self._open: list[Bill] = []
        self.n_requests, self.read, self.written = 0, 0, 0

    @property
    def spent_usd(self) -> float:
        """US dollars spent so far, at the prices given."""
        return self.cost(self.read, self.written)

    def cost(self, read: int, written: int) -> float:
        """US dollars for so many tokens, at the prices given; 0 without."""
        return (read * self._prices[0] + written * self._prices[1]) / 1e6

    @contextmanager
    def reserved(self, read: int, written: int) -> Iterator[Bill]:
        """Set tokens aside for one request; the bill is corrected inside, and dropped if the request fails.

        Raises
        ------
        BudgetReached
            With all requests under way, it could pass the budget.
        """
        bill = Bill(read, written)
        with self._lock:
            bills = [*self._open, bill]
            reads, writes = self.read + sum(each.read for each in bills), self.written + sum(each.written for each in bills)
            if self.tokens is not None and reads + writes > self.tokens:
                raise BudgetReached(self._message(f"{self.tokens:,} tokens"))
            if self.usd is not None and self.cost(reads, writes) > self.usd:
                raise BudgetReached(self._message(f"${self.usd:,.2f}"))
            self._open.append(bill)
        try:
            yield bill
        except BaseException:
            with self._lock:
                self._open = [each for each in self._open if each is not bill]
            raise
        with self._lock:
            self._open = [each for each in self._open if each is not bill]
            self.n_requests, self.read, self.written = self.n_requests + 1, self.read + bill.read, self.written + bill.written

    def _message(self, limit: str) -> str:
        return (
            f"The budget of {limit} is reached: {self.read:,} tokens read and {self.written:,} written in "
            f"{self.n_requests:,} requests (${self.spent_usd:,.2f} at the prices given). What was answered is kept; run the "
            "same again, with a budget of its own, to go on."
        )


class Pace:
    """When the next request may go out, as the server's headers say. Shared by the threads of one endpoint."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._not_before = 0.0

    def wait(self) -> None:
        """Sleep until it may."""
        with self._lock:
            left = self._not_before - monotonic()
        if left > 0:
            sleep(left)

    def hear(self, headers: Mapping[str, str]) -> None:
        """Note what a reply says of requests or tokens that are used up."""
        waits = [
            duration(headers.get(f"x-ratelimit-reset-{what}"))
            for what in ("requests", "tokens")
            if headers.get(f"x-ratelimit-remaining-{what}") == "0"
        ]
        self.hold(max((wait for wait in waits if wait is not None), default=0.0))

    def hold(self, seconds: float) -> None:
        """Send nothing for so long."""
        with self._lock:
            self._not_before = max(self._not_before, monotonic() + min(seconds, LONGEST_WAIT))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal asks to wait: `Retry-After` as seconds or as a date, or the reset of a rate limit."""
    value = headers.get("retry-after")
    if value and re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    if value:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time())
        except ValueError:
            pass
    resets = [duration(headers.get(f"x-ratelimit-reset-{what}")) for what in ("requests", "tokens")]
    return max((reset for reset in resets if reset is not None), default=None)


def duration(text: str | None) -> float | None:
    """Seconds of a duration such as `6m0s`, `250ms` or `1.5`; None if it is none."""
    if not text:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    found = _DURATION.findall(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in found) if found else None


def persist(request: Callable[[], T], retries: int, pace: Pace) -> T:
    """Make a request, again after each failure that may pass: after what the server asks for, or 0.5, 1, 2, ... seconds.

    Raises
    ------
    TryAgain
        It failed to the last.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

    def wait(state: RetryCallState) -> float:
        failure: Any = state.outcome and state.outcome.exception()
        if failure.wait is not None:
            pace.hold(failure.wait)
            return failure.wait
        # Up to a quarter more, so that requests that failed together do not come back together.
        return min(_SLOWEST, _FIRST_WAIT * 2 ** (state.attempt_number - 1)) * random.uniform(1.0, 1.25)

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, TryAgain) and (error.wait or 0.0) <= LONGEST_WAIT),
        stop=stop_after_attempt(retries + 1),
        wait=wait,
        sleep=lambda seconds: sleep(seconds),
        reraise=True,
    )(request)
