"""Prompts written here and completed by a server: the tokens are LocalModel's, and what a server cannot be told is said."""

import json
import math
from dataclasses import replace

import pytest

from elicit import Endpoint, ask
from elicit.endpoint_server import EndpointError
from interp import MissingModel, PromptWriter
from store import END_OF_TURN, Message, Option, Outcome, Question, Sampling
from tests.conftest import ALL_FAMILIES, CHATML, pair_question, tiny, tiny_tokenizer
from tests.elicit.chat_server import ChatServer

QUESTION = pair_question("Sing.", "Dance.", prefill="I choose Task")
SPECIAL = Question((Message("user", "Say <|end|> aloud."),), options=(Option("A", ("A",)), Option("B", ("B",))))
TABLE = {" A": 0.6, " B": 0.25, "\n": 0.05, ".": 0.04, "": 0.03, "?": 1e-6}


@pytest.fixture(scope="module")
def write():
    return PromptWriter(tiny_tokenizer(CHATML))


def endpoint(server, write, **changes):
    return Endpoint(server.url, "tabled", write=write, retries=0, **changes)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_prompts_are_those_that_a_local_model_reads(family):
    model = tiny(family)
    write = PromptWriter(model.renderer._tokenizer)
    for question in (QUESTION, replace(QUESTION, system="Be brief."), replace(QUESTION, system="", prefill=""), SPECIAL):
        written, rendered = write(question), model.render(question)
        assert written.token_ids == tuple(rendered.token_ids)
        assert rendered.text.endswith(written.text)
        assert written.as_text == (question is not SPECIAL)


def test_a_begun_answer_is_sent_as_tokens_and_read_as_from_a_chat(write):
    with ChatServer(lambda prompt, said: TABLE) as server:
        asked = endpoint(server, write)
        (answer,) = ask([QUESTION], asked)
        assert answer.log_probs == pytest.approx({"A": math.log(0.6), "B": math.log(0.25)})
        assert tuple(server.requests[-1]["prompt"]) == write(QUESTION).token_ids
        assert server.requests[-1]["stop"] == ["<|end|>"] and "messages" not in server.requests[-1]
        assert asked.shown(QUESTION).endswith("I choose Task")
        (said,) = ask([replace(QUESTION, sampling=Sampling(max_new_tokens=4))], asked)
        assert said.text == "A."


def test_a_server_that_takes_no_tokens_gets_the_text_unless_it_would_say_other_tokens(write):
    count = {write(question).text: len(write(question).token_ids) for question in (QUESTION, SPECIAL)}
    with ChatServer(lambda prompt, said: TABLE, takes_tokens=False, counts=lambda prompt: count.get(prompt, 0)) as server:
        good, bad = ask([QUESTION, SPECIAL], endpoint(server, write))
        assert good.outcome is Outcome.CHOSE and server.requests[-1]["prompt"] == write(QUESTION).text
        assert bad.outcome is Outcome.ERROR and "it holds the name of a special token" in (bad.error or "")


def test_a_tokenizer_of_another_model_is_found_out_by_the_count(write):
    with (
        ChatServer(lambda prompt, said: TABLE, counts=lambda prompt: len(prompt) + 1) as server,
        pytest.raises(EndpointError, match=r"reads \d+ tokens in a prompt that has \d+ with the given tokenizer"),
    ):
        ask([QUESTION], endpoint(server, write))


def test_a_server_that_does_not_count_tokens_is_believed(write):
    with ChatServer(lambda prompt, said: TABLE, counts=lambda prompt: 0) as server:
        (answer,) = ask([QUESTION], endpoint(server, write))
    assert answer.outcome is Outcome.CHOSE


def test_of_tokens_without_a_text_nothing_is_believed_where_they_are_listed_by_text(write):
    ended = replace(QUESTION, options=(Option("A", (" A",), (END_OF_TURN,)), Option("B", (" B",), (END_OF_TURN,))), prefill="")
    with ChatServer(lambda prompt, said: TABLE) as server:
        (answer,) = ask([ended], endpoint(server, write))
    # What ends the turn has at most all that is not listed.
    rest = 1 - sum(TABLE.values()) + TABLE[""]
    assert answer.bounds == pytest.approx({"A": math.log(0.6 * rest), "B": math.log(0.25 * rest)})
    assert answer.outcome is Outcome.OFF_FORMAT


def test_the_tokenizer_is_part_of_the_fingerprint(write):
    with_it, without = (Endpoint("http://127.0.0.1:1/v1", "m", write=each) for each in (write, None))
    other = Endpoint("http://127.0.0.1:1/v1", "m", write=PromptWriter(tiny_tokenizer(None)))
    assert len({each.fingerprint for each in (with_it, without, other)}) == 3


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingModel, match=r"Cannot load the tokenizer of .*nothing"):
        PromptWriter.load(tmp_path / "nothing")


def test_a_list_by_text_that_several_tokens_share_is_asked_for_again_and_shorter(write):
    """As llama-cpp-python lists them: " A" stands first, with the value of a token that is cut in mid-character."""
    collided = {" A": 1e-4, " B": 0.25, "\n": 0.05, "?": 2e-5, "!": 1e-5}

    def fault(body):
        if body.get("logprobs", 0) <= 4:
            return None
        tops = {token: math.log(chance) for token, chance in collided.items()}
        listed = {"tokens": [" B"], "token_logprobs": [math.log(0.25)], "top_logprobs": [tops]}
        chosen = {"text": " B", "finish_reason": "length", "logprobs": listed}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        return 200, json.dumps({"choices": [chosen], "usage": usage}), {}

    with ChatServer(lambda prompt, said: TABLE) as server:
        asked = endpoint(server, write, top_logprobs=16)
        assert asked.capabilities.top_k == 16
        server.fault = fault
        (answer,) = ask([QUESTION], asked)
        assert answer.log_probs == pytest.approx({"A": math.log(0.6), "B": math.log(0.25)})
        assert [body["logprobs"] for body in server.requests[-3:]] == [16, 8, 4]


def test_the_token_that_was_said_bounds_nothing_where_it_comes_on_top_of_the_list(write):
    table = {" A": 0.6, " B": 0.25, ".": 0.1, "zzz": 1e-9}
    with ChatServer(lambda prompt, said: table) as server:
        server.fault = lambda body: (
            200,
            json.dumps(
                {
                    "choices": [
                        {
                            "text": "zzz",
                            "logprobs": {
                                "tokens": ["zzz"],
                                "token_logprobs": [math.log(1e-9)],
                                "top_logprobs": [{token: math.log(chance) for token, chance in table.items()}],
                            },
                        }
                    ],
                    "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1},
                }
            ),
            {},
        )
        (answer,) = ask([replace(QUESTION, options=(*QUESTION.options, Option("C", (" C",))))], endpoint(server, write))
    assert answer.bounds["C"] == pytest.approx(math.log(1 - 0.95))  # all that is not listed, and not 1e-9
