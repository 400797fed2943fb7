"""Endpoint: what a server lists is what is read, what it does not list is a bound, and what fails is named and asked again."""

import math
import socket
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest

from elicit import Context, ask, choice, endpoint_limits
from elicit.endpoint import Endpoint
from elicit.endpoint_limits import Budget, BudgetReached, duration, retry_after
from elicit.endpoint_scoring import Listing, average, read_options, steps
from elicit.endpoint_server import EndpointError, Server
from elicit.tasks import Task
from store import END_OF_TURN, Answer, MeasurementLog, Message, Option, Outcome, Question, Sampling
from tests.conftest import pair_question
from tests.elicit.chat_server import ENDS, HTML, KEY, KEY_NAME, ChatServer

TABLE = {" A": 0.6, " B": 0.25, "A": 0.05, "\n": 0.04, ".": 0.03, " or": 0.02, " C": 0.00005, "?": 0.00004}
QUESTION = pair_question("Sing.", "Dance.", prefill="")
MODEL = "tabled"


def flat(last, said):
    return TABLE


def plain_question(text="Which?", options=("A", "B"), **changes) -> Question:
    return Question((Message("user", text),), options=tuple(Option(each, (each,)) for each in options), **changes)


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were to be slept, none of which are."""
    seconds: list[float] = []
    monkeypatch.setattr(endpoint_limits, "sleep", seconds.append)
    return seconds


@contextmanager
def serving(table=flat, **how):
    with ChatServer(table, **how) as server:
        yield server


# ---- exact answers


def test_scores_are_those_of_the_table():
    with serving() as server:
        (answer,) = ask([QUESTION], Endpoint(server.url, MODEL))
    assert answer.outcome is Outcome.CHOSE
    assert answer.log_probs == pytest.approx({"A": math.log(0.65), "B": math.log(0.25)}, rel=1e-9)
    assert answer.bounds == pytest.approx({"B": math.log(0.25 + 0.00004)})  # "B" without a space was not listed
    assert len(server.asked) == 1


def test_options_of_several_tokens_and_what_must_follow_them_are_chained():
    table = {
        "": {"1": 0.5, "2": 0.3, "x": 1e-7, " some": 0.1},
        "1": {ENDS: 0.8, "0": 0.15, ".": 0.05, "y": 1e-9},
        "2": {ENDS: 0.9, ".": 0.05, "0": 0.04, "y": 1e-9},
        "10": {ENDS: 0.7, ".": 0.3, "y": 1e-9},
        " some": {"what": 0.75, "one": 0.25, "y": 1e-9},
        " somewhat": {ENDS: 0.5, "y": 1e-9},
    }
    ends = (END_OF_TURN, ".")
    question = Question(
        (Message("user", "How much?"),),
        options=(
            *(Option(label, (label,), ends) for label in ("1", "2", "10")),
            Option("somewhat", (" somewhat",), (END_OF_TURN,)),
        ),
    )
    with serving(lambda last, said: table[said]) as server:
        answer = Endpoint(server.url, MODEL).score([question])[0]
    expected = {"1": 0.5 * 0.85, "2": 0.3 * 0.95, "10": 0.5 * 0.15 * 1.0, "somewhat": 0.1 * 0.75 * 0.5}
    assert {label: math.exp(value) for label, value in answer.log_probs.items()} == pytest.approx(expected, rel=1e-9)
    assert not answer.bounds and answer.outcome is Outcome.CHOSE
    assert sorted(body["messages"][-1]["content"] for body in server.asked[1:]) == [" some", " somewhat", "1", "10", "2"]
    assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in server.asked[1:])


def test_the_steps_of_a_plan_follow_every_option_word_by_word():
    assert steps(plain_question()) == [""]
    ends = (END_OF_TURN, ".")
    options = (Option("1", ("1", " 1"), ends), Option("10", ("10",), ends), Option("some", (" some what",), ends))
    asked = steps(Question((Message("user", "Rate it."),), options=options))
    assert sorted(asked) == ["", " 1", " some", " some what", "1", "10"]


def test_an_option_that_is_not_listed_is_bounded_by_the_last_one_that_is():
    """Neither 0, nor 1, nor a half: the bound itself where it is negligible, and no vote where it is not."""
    listed = [f" w{number}" for number in range(19)]
    for chance, outcome in ((1e-5, Outcome.CHOSE), (2e-3, Outcome.OFF_FORMAT)):
        table = {"A": 0.9} | dict.fromkeys(listed, chance)
        with serving(lambda last, said, table=table: table) as server:
            (answer,) = ask([plain_question()], Endpoint(server.url, MODEL))
        assert answer.outcome is outcome and answer.unlisted == ("B",)
        assert answer.log_probs == pytest.approx({"A": math.log(0.9), "B": math.log(chance)})
        assert 0 < answer.distribution()["B"] < 0.003 and answer.mass == pytest.approx(0.9)
    assert "not listed in the top k: 'B' (up to 0.002)" in answer.error


def test_what_is_not_listed_is_not_bounded_by_a_servers_rounding():
    """Lists are rounded, so that they may sum to more than one, and what is left to less than nothing."""
    assert Listing({"A": math.log(0.9), "C": math.log(0.1001)}).floor == pytest.approx(1e-5)
    assert Listing({"A": math.log(0.9), "C": math.log(0.06)}).floor == pytest.approx(0.04)
    assert Listing({"A": math.log(0.9), "C": math.log(0.02)}).floor == pytest.approx(0.02)


def test_where_no_option_is_listed_there_is_no_vote_and_no_even_split():
    with serving(lambda last, said: {f"w{number}": 0.04 for number in range(20)}) as server:
        asked = choice.questions([Task("a", "Sing."), Task("b", "Dance.")], [("a", "b")])
        log = MeasurementLog()
        table = choice.comparisons(asked, ask(asked, Endpoint(server.url, MODEL), log))
        n_requests = len(server.requests)
        ask(asked, Endpoint(server.url, MODEL), log)
    assert table["outcome"].tolist() == ["off_format"] * 2 and table["p_first"].isna().all() and (table["mass"] == 0).all()
    assert len(server.requests) == n_requests  # it is an answer, kept as such
    assert log.to_frame()["bounds"].notna().all()


def test_a_form_that_might_be_one_token_that_is_not_listed_is_not_read_off_its_beginning():
    def next_tokens(said):
        return Listing({"": {"No": -0.1, "Y": -5.0, "z": -6.0}, "Y": {"es": -9.0, "o": -0.1}}[said])

    question = plain_question(options=("Yes", "No"))
    reading = read_options(question, next_tokens, lambda said: True)
    assert reading.listed["Yes"] == 0 and reading.most["Yes"] == pytest.approx(math.exp(-6))


def test_an_option_that_goes_on_from_another_is_not_told_from_it():
    reading = read_options(
        plain_question(options=("1", "10")), lambda said: Listing({"1": math.log(0.9), "2": math.log(0.1)}), lambda said: True
    )
    assert reading.listed == {"1": pytest.approx(0.9), "10": 0} and reading.most["10"] == pytest.approx(0.9)


def test_a_hidden_end_of_turn_is_bounded_by_all_that_is_not_listed():
    question = replace(plain_question(), options=(Option("1", ("1",), (END_OF_TURN,)), Option("2", ("2",), (END_OF_TURN,))))
    tables = {"": {"1": 0.6, "2": 0.4}, "1": {".": 0.1, "x": 1e-6}, "2": {ENDS: 0.9, "x": 1e-6}}
    reading = read_options(
        question, lambda said: Listing({token: math.log(p) for token, p in tables[said].items()}), lambda said: True
    )
    assert reading.listed["1"] == 0 and reading.most["1"] == pytest.approx(0.6 * 0.9, rel=1e-3)
    assert reading.listed["2"] == reading.most["2"] == pytest.approx(0.36)


def test_an_option_that_is_not_listed_is_forced_where_the_server_has_a_bias_and_a_tokenizer():
    table = {f" w{number}": 0.04 for number in range(20)} | {"A": 0.06, "B": 0.003}
    with serving(lambda last, said: table, tokens=("Q", "A", "B")) as server:
        respondent = Endpoint(server.url, MODEL)
        answer = respondent.score([plain_question()])[0]
    assert respondent.capabilities.logit_bias and not answer.bounds
    assert answer.log_probs == pytest.approx({"A": math.log(0.06), "B": math.log(0.003)})


def test_refusals_are_read_beside_the_options_where_they_are_listed():
    with serving(lambda last, said: {"I": 0.8, "A": 0.15, "B": 0.05}) as server:
        (answer,) = ask([plain_question(refusals=("I", "Sorry"))], Endpoint(server.url, MODEL))
    assert answer.outcome is Outcome.REFUSED and answer.refusal_mass == pytest.approx(0.8)


def test_repeated_calls_are_averaged_and_keep_their_spread(tmp_path):
    chances = iter([0.5, 0.7, 0.6])
    with serving(lambda last, said: {"A": (a := next(chances)), "B": 1 - a}) as server:
        respondent = Endpoint(server.url, MODEL, repeats=3, concurrency=1)
        with MeasurementLog(tmp_path / "log.sqlite") as log:
            ask([plain_question()], respondent, log)
            (answer,) = ask([plain_question()], respondent, log)
    assert answer.log_probs == pytest.approx({"A": math.log(0.6), "B": math.log(0.4)})
    assert answer.spread["A"] == pytest.approx(pd.Series([0.5, 0.7, 0.6]).map(math.log).std())
    assert len(server.asked) == 3


def test_averages_of_what_was_listed_only_once_are_ranges():
    class Once:
        def __init__(self, listed, most):
            self.listed, self.most = {"A": listed}, {"A": most}

    log_probs, bounds, spread = average([Once(0.002, 0.002), Once(0.0, 0.001)])
    assert math.exp(log_probs["A"]) == pytest.approx(0.001) and math.exp(bounds["A"]) == pytest.approx(0.0015)
    assert spread["A"] > 0


# ---- what a server can do


@pytest.mark.parametrize("prefill", ["fields", "always", "never"])
def test_how_a_server_goes_on_with_a_prefilled_turn_is_found_out_once(prefill):
    table = {"Task": TABLE, "": {"Task": 0.5, "A": 0.3, "B": 0.2}}
    with serving(lambda last, said: table[said], prefill=prefill) as server:
        respondent = Endpoint(server.url, MODEL)
        question = replace(QUESTION, prefill="Task")
        if prefill == "never":
            with pytest.warns(
                UserWarning, match="does not go on with a prefilled assistant turn; a question's prefill is left"
            ):
                answers = respondent.score([question])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answers = respondent.score([question])
        n_probes = len(server.requests) - len(server.asked)
        respondent.score([replace(QUESTION, prefill="")])
        assert len(server.requests) - len(server.asked) == n_probes
    found = respondent.capabilities.prefill
    assert (found is None) == (prefill == "never") and (found is None or bool(found) or prefill == "always")
    expected = 0.3 if prefill == "never" else 0.65
    assert math.exp(answers[0].log_probs["A"]) == pytest.approx(expected)


def test_a_server_that_trims_turns_is_not_asked_what_comes_after_a_space():
    table = {"": {" ": 0.9, "7": 0.05, "z": 0.001}, " ": {"5": 1.0}}
    question = plain_question(options=(" 5", "7"))
    for trims in (True, False):
        with serving(lambda last, said: table[said], trims=trims) as server:
            respondent = Endpoint(server.url, MODEL)
            answer = respondent.score([question])[0]
        assert respondent.capabilities.spaces is not trims
        assert (answer.outcome is Outcome.CHOSE) is not trims
    assert math.exp(answer.log_probs[" 5"]) == pytest.approx(0.9)


def test_a_server_that_lists_fewer_tokens_is_asked_for_fewer():
    with serving(most_listed=5) as server:
        respondent = Endpoint(server.url, MODEL, top_logprobs=50)
        respondent.score([QUESTION])
    assert respondent.capabilities.top_k == 5 and server.asked[0]["top_logprobs"] == 5


def test_a_server_without_log_probabilities_says_so_and_can_be_sampled():
    with serving(log_probs=False, says="B, I think") as server:
        respondent = Endpoint(server.url, MODEL)
        with pytest.raises(ValueError, match=r"127.0.0.1:\d+/v1 tells no log-probabilities of 'tabled'.*Sample instead"):
            ask([QUESTION], respondent)
        (answer,) = ask([replace(QUESTION, sampling=Sampling())], respondent)
    assert answer.choice == "B"


def test_options_that_must_be_followed_need_a_server_that_can():
    with serving(prefill="never") as server, pytest.raises(ValueError, match=r"cannot be read, as the options \['1'\] need"):
        Endpoint(server.url, MODEL).score([replace(plain_question(), options=(Option("1", ("1",), (".",)),))])


# ---- sampled answers


def test_texts_are_sampled_with_their_settings_and_a_seed_of_their_own():
    sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=3, seed=4)
    with serving(says="one two three four") as server:
        questions = [Question((Message("user", "Speak."),), sampling=sampling, draw=draw) for draw in range(3)]
        answers = Endpoint(server.url, MODEL, concurrency=1).generate(questions)
        (short,) = ask([replace(questions[0], sampling=Sampling(max_new_tokens=9))], Endpoint(server.url, MODEL))
    assert all(answer.truncated and answer.text == "one two three" for answer in answers)
    assert not short.truncated and short.outcome is Outcome.CHOSE
    sent = [[body[name] for name in ("temperature", "top_p", "max_tokens", "seed")] for body in server.asked[:3]]
    assert sent == [[0.7, 0.9, 3, 4 + draw] for draw in range(3)]


def test_the_three_states_of_a_system_prompt_and_the_prefill_are_sent_as_they_are():
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, provider="Somebody", extra_body={"top_k": 7})
        questions = [replace(QUESTION, system=system, prefill="Task") for system in (None, "", "Be kind.")]
        respondent.score(questions)
        assert len({respondent.prompt_digest(question) for question in questions}) == 3
    systems = {tuple(m["content"] for m in body["messages"] if m["role"] == "system") for body in server.asked}
    assert systems == {(), ("",), ("Be kind.",)}
    assert all(body["messages"][-1] == {"role": "assistant", "content": "Task"} for body in server.asked)
    assert all(
        body["provider"] == {"order": ["Somebody"], "allow_fallbacks": False} and body["top_k"] == 7 for body in server.asked
    )
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.asked)


def test_what_changes_answers_changes_the_fingerprint_and_nothing_else_does():
    url = "http://h:1/v1"
    base = Endpoint(url, "m").fingerprint
    same = [Endpoint(url, "m", concurrency=2, retries=0, budget_tokens=5), Endpoint("https://h:1/v1/", "m", "SOME_KEY")]
    assert {each.fingerprint for each in same} == {base}
    others = [
        Endpoint("http://h:2/v1", "m"),
        Endpoint("http://h:1/other/v1", "m"),
        Endpoint(url, "n"),
        Endpoint(url, "m", provider="p"),
        Endpoint(url, "m", extra_body={"top_k": 1}),
        Endpoint(url, "m", repeats=2),
        Endpoint(url, "m", top_logprobs=5),
    ]
    assert len({base, *(each.fingerprint for each in others)}) == 1 + len(others)


# ---- many at a time


def test_answers_are_in_the_order_of_the_questions_however_they_come_in():
    def table(last, said):
        a = int(last) / 100
        return {"A": a, "B": 1 - a}

    with serving(table, delay=lambda number: 0.03 * (number % 3)) as server:
        heard = []
        questions = [plain_question(str(number)) for number in range(10, 34)]
        answers = Endpoint(server.url, MODEL, concurrency=6).score(questions, lambda number, _: heard.append(number))
    assert [round(100 * math.exp(answer.log_probs["A"])) for answer in answers] == list(range(10, 34))
    assert sorted(heard) == list(range(24)) and heard != sorted(heard)


def test_no_more_requests_are_under_way_than_allowed():
    under_way, most, lock = 0, 0, threading.Lock()

    def table(last, said):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return TABLE

    with serving(table) as server:
        Endpoint(server.url, MODEL, concurrency=3).score([plain_question(str(number)) for number in range(20)])
    assert 1 < most <= 3


# ---- failures


def test_a_server_that_is_busy_is_asked_again_when_it_says(slept):
    with serving() as server:
        respondent = Endpoint(server.url, MODEL)
        respondent.capabilities  # noqa: B018
        server.faults = [(429, "{}", {"retry-after": "7"}), (503, HTML, {"content-type": "text/html"}), (429, "{}", {})]
        (answer,) = respondent.score([QUESTION])
    assert answer.outcome is Outcome.CHOSE
    assert 7.0 in slept
    assert [pause for pause in slept if pause < 6] == [pytest.approx(1.125, rel=0.12), pytest.approx(2.25, rel=0.12)]


def test_rate_limit_headers_hold_back_the_next_request(slept):
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, concurrency=1)
        respondent.capabilities  # noqa: B018
        server.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}
        respondent.score([QUESTION])
        assert not slept
        respondent.score([QUESTION])
    assert slept == [pytest.approx(90, abs=2)]


def test_durations_and_dates_are_read():
    assert [duration(text) for text in ("6m0s", "250ms", "1.5", "1h2m", "soon", None)] == [360, 0.25, 1.5, 3720, None, None]
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert retry_after({"retry-after": date}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"x-ratelimit-reset-tokens": "2s"}) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((500, HTML, {"content-type": "text/html"}), "answered 500: an HTML page, 'Bad gateway'"),
        ((200, HTML, {"content-type": "text/html"}), "answered with an HTML page"),
        ((200, '{"choices": [', {}), "answered with what is not JSON"),
        ((200, '{"error": {"message": "no provider"}}', {}), "answered with no completion: no provider"),
        ((200, '{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"x": 1}]}]}}]}', {}), "malformed completion"),
        ((400, '{"error": {"message": "too long: 9000 tokens"}}', {}), "does not take this request (400): too long: 9000"),
        ((429, "{}", {"retry-after": "86400"}), "answered 429"),
    ],
)
def test_what_fails_for_good_is_recorded_and_asked_again(fault, reason, slept):
    log = MeasurementLog()
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, retries=2)
        questions = [plain_question("good"), plain_question("bad")]
        server.fault = lambda body: fault if body["messages"][0]["content"] == "bad" else None
        answers = ask(questions, respondent, log)
        assert [answer.outcome for answer in answers] == [Outcome.CHOSE, Outcome.ERROR]
        assert reason in answers[1].error
        server.fault = lambda body: None
        n_requests = len(server.requests)
        assert [answer.outcome for answer in ask(questions, respondent, log)] == [Outcome.CHOSE] * 2
        assert len(server.requests) == n_requests + 1


def test_a_server_that_only_fails_ends_the_run_and_keeps_what_it_said(slept):
    log = MeasurementLog()
    questions = [plain_question(str(number)) for number in range(60)]
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, retries=1, concurrency=2)
        server.fault = lambda body: (429, "{}", {}) if body in server.asked[4:] else None
        with pytest.raises(EndpointError, match=r"8 questions in a row failed after all tries, .*answered 429"):
            ask(questions, respondent, log)
        assert len(server.asked) < 60
        server.fault = lambda body: None
        n_requests = len(server.requests)
        assert all(answer.outcome is Outcome.CHOSE for answer in ask(questions, respondent, log))
        assert len(server.requests) == n_requests + 56


def test_an_address_where_nothing_is_ends_the_run_at_once(slept):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    respondent = Endpoint(f"http://127.0.0.1:{port}/v1", MODEL)
    with pytest.raises(EndpointError, match=rf"127.0.0.1:{port}/v1 cannot be reached .*Is the server running"):
        ask([QUESTION], respondent)
    assert not slept


def test_a_server_that_goes_away_is_waited_for_and_then_ends_the_run(slept):
    log = MeasurementLog()
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, retries=3, timeout=2)
        ask([plain_question("first")], respondent, log)
    respondent._chat._client.close()  # the connection that was kept alive
    respondent._chat._client = None
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask([plain_question("first"), plain_question("second")], respondent, log)
    assert len(slept) == 3 and len(log) == 1


def test_a_wrong_model_a_wrong_path_and_a_web_page_are_named(slept):
    with serving() as server:
        with pytest.raises(EndpointError, match=r"has no model 'nope'.*\(404\): The model `nope` does not exist"):
            Endpoint(server.url, "nope").score([QUESTION])
        with pytest.raises(EndpointError, match=r"is not where chat completions are served \(404\).*usually ends in /v1"):
            Endpoint(server.url.removesuffix("/v1"), MODEL).score([QUESTION])
        server.faults = [(200, HTML, {"content-type": "text/html"})]
        with pytest.raises(EndpointError, match="answered with an HTML page"):
            Endpoint(server.url, MODEL).score([QUESTION])
    assert not slept


def test_a_slow_server_times_out(slept, monkeypatch):
    with serving() as server:
        respondent = Endpoint(server.url, MODEL, retries=0, timeout=0.2)
        respondent.capabilities  # noqa: B018
        server.delay = lambda number: 0.5
        (answer,) = respondent.score([QUESTION])
    assert answer.outcome is Outcome.ERROR and "did not answer within 0.2 s" in answer.error


# ---- the key


def test_a_wrong_or_missing_key_is_named_by_its_variable_and_never_shown(monkeypatch):
    with serving(key="another") as server:
        monkeypatch.setenv(KEY_NAME, KEY)
        with pytest.raises(EndpointError) as refused:
            Endpoint(server.url, MODEL, KEY_NAME).score([QUESTION])
        assert f"refuses the key (401; the variable {KEY_NAME} holds it)" in str(refused.value)
        assert KEY not in str(refused.value) and refused.value.__suppress_context__
        monkeypatch.delenv(KEY_NAME)
        with pytest.raises(EndpointError, match=f"The environment variable {KEY_NAME} is not set"):
            Endpoint(server.url, MODEL, KEY_NAME).score([QUESTION])
        with pytest.raises(EndpointError, match="no api_key_env was given"):
            Endpoint(server.url, MODEL).score([QUESTION])


def test_the_key_is_sent_and_written_nowhere(monkeypatch, tmp_path, slept, caplog):
    monkeypatch.setenv(KEY_NAME, KEY)
    with serving(key=KEY) as server:
        respondent = Endpoint(server.url, MODEL, KEY_NAME, retries=1)
        server.fault = lambda body: (500, f"key {KEY} broke it", {}) if body["messages"][0]["content"] == "bad" else None
        with MeasurementLog(tmp_path / "log.sqlite") as log:
            good, bad = ask([plain_question("good"), plain_question("bad")], respondent, log)
            log.export(tmp_path / "log.parquet")
    assert good.outcome is Outcome.CHOSE and "key <key> broke it" in bad.error
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    shown = repr(respondent) + respondent.fingerprint + respondent.shown(QUESTION) + caplog.text
    assert len(written) > 1000 and KEY.encode() not in written and KEY not in shown


def test_an_address_with_credentials_is_refused_without_showing_them():
    for url in ("https://user:hunter2@host/v1", "https://host/v1?key=hunter2"):
        with pytest.raises(ValueError, match="environment variable") as refused:
            Server(url, "m")
        assert "hunter2" not in str(refused.value)
    for url in ("host:80/v1", "ftp://host/v1", ""):
        with pytest.raises(ValueError, match="expected an address such as"):
            Server(url, "m")


# ---- the budget


def test_a_budget_ends_the_run_with_what_was_answered_and_another_run_goes_on():
    log = MeasurementLog()
    questions = [plain_question(f"question {number}") for number in range(12)]
    with serving() as server:
        probes = Endpoint(server.url, MODEL)
        probes.capabilities  # noqa: B018
        spent = probes.budget.read + probes.budget.written
        respondent = Endpoint(server.url, MODEL, budget_tokens=spent + 60, concurrency=2)
        with pytest.raises(BudgetReached, match=r"The budget of \d+ tokens is reached: .*run the same again"):
            ask(questions, respondent, log)
        n_known = len(log)
        assert 0 < n_known <= 5 and respondent.budget.read + respondent.budget.written <= spent + 60
        n_asked = len(server.asked)
        assert n_asked == n_known
        answers = ask(questions, Endpoint(server.url, MODEL), log)
        assert len(server.asked) == 12 and len(answers) == 12


def test_models_of_one_server_are_respondents_of_their_own_that_spend_one_budget():
    tables = {name: lambda last, said: TABLE for name in ("one", "two")}
    with serving(tables) as server:
        one = Endpoint(server.url, "one", top_logprobs=5, budget_tokens=10_000)
        (answer,) = ask([QUESTION], one)
        two = one.with_model("two")
        assert not [body for body in server.requests if body["model"] == "two"]  # nothing is asked of it yet
        n_tokens = one.budget.read + one.budget.written
        assert ask([QUESTION], two)[0].log_probs == answer.log_probs
        assert {body["model"] for body in server.requests} == {"one", "two"}
        assert one.budget.read + one.budget.written == 2 * n_tokens  # its capabilities are found out anew
        assert one.budget.n_requests == len(server.requests)
        assert two.fingerprint == Endpoint(server.url, "two", top_logprobs=5).fingerprint != one.fingerprint
        assert (one.identity.name, two.identity.name) == ("one", "two")
        one.budget.tokens = 2 * n_tokens
        for respondent in (one, two):
            with pytest.raises(BudgetReached, match=f"in {len(server.requests)} requests"):
                ask([plain_question()], respondent)


def test_a_budget_in_money_counts_both_prices():
    budget = Budget(None, 1.0, (10.0, 1000.0))
    with budget.reserved(50_000, 1) as bill:
        bill.read, bill.written = 40_000, 500
    assert budget.spent_usd == pytest.approx(0.4 + 0.5)
    with (
        pytest.raises(BudgetReached, match=r"\$1.00 is reached: 40,000 tokens read and 500 written in 1 requests \(\$0.90"),
        budget.reserved(1, 200),
    ):
        pass
    with pytest.raises(RuntimeError), budget.reserved(1, 50):
        raise RuntimeError
    assert budget.n_requests == 1  # what failed is not counted
    with pytest.raises(ValueError, match="nothing says what tokens cost"):
        Budget(None, 1.0, None)


def test_numbers_that_make_no_sense_are_refused():
    for name in ("concurrency", "repeats", "top_logprobs"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
            Endpoint("http://h/v1", "m", **{name: 0})
    with pytest.raises(ValueError, match=r"needs Question\.options"):
        Endpoint("http://h/v1", "m").score([replace(plain_question(), options=())])
    with pytest.raises(ValueError, match=r"needs Question\.sampling"):
        Endpoint("http://h/v1", "m").generate([plain_question()])


def test_without_its_packages_an_endpoint_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'penchant\[endpoint\]'"):
        Endpoint("http://127.0.0.1:9/v1", "m").score([QUESTION])


def test_sampling_by_a_context_reads_texts_where_nothing_can_be_scored():
    with serving(log_probs=False, says="B") as server:
        asked = choice.questions(
            [Task("a", "Sing."), Task("b", "Dance.")], [("a", "b")], context=Context(sampling=Sampling(), n_draws=2)
        )
        table = choice.comparisons(asked, ask(asked, Endpoint(server.url, MODEL)))
    assert len(table) == 4 and (table["outcome"] == "chose").all()


def test_an_exact_answer_without_bounds_is_as_before():
    assert Answer.exact(QUESTION, {"A": -0.1, "B": -3.0}) == Answer(Outcome.CHOSE, {"A": -0.1, "B": -3.0})
