"""The grammar of positions: what each names, on real and tiny chat templates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import Positions
from store import Message, Question, Span
from tests.conftest import tiny

CHAT = Question(
    (Message("user", "Name a colour."), Message("assistant", "Blue."), Message("user", "Why that one?")),
    spans=(Span("task", 2, 0, 3),),
)


def words(model, position: str, question: Question = CHAT, completion: str | None = None) -> str:
    rendered = model.render(question, completion)
    return model.renderer.decode(rendered.token_ids[Positions.parse(position).tokens(rendered)].tolist(), special=True)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("task", "Why"),
        ("turn:0", "Name a colour."),
        ("turn:1", "Blue."),
        ("turn:-1", "Why that one?"),
        ("turn:2_last", "?"),
        ("end_of_turn", "<|im_end|>"),
        ("turn_boundary:-1", "\n"),
        ("turn_boundary:-2", "istant"),
        ("turn_boundary:-3", "ass"),
        ("turn_boundary:-4", "<|im_start|>"),
        ("turn_boundary:-5", "\n"),
        ("turn_boundary:-6", "<|im_end|>"),
        ("prompt_last", "\n"),
        ("decision", "\n"),
        ("token:1", "system"),
    ],
)
def test_positions_name_the_tokens_of_the_embedded_models_template(embedded, position, expected):
    assert words(embedded, position) == expected


def test_a_completion_is_read_after_the_prompt_and_leaves_the_decision_where_it_was(embedded):
    bare, full = embedded.render(CHAT), embedded.render(CHAT, "Because it is calm.")
    assert full.token_ids[: len(bare.token_ids)].tolist() == bare.token_ids.tolist()
    assert full.decision == bare.decision
    assert words(embedded, "completion", completion="Because it is calm.") == "Because it is calm."
    assert words(embedded, "completion_first", completion="Because it is calm.") == "Because"
    assert words(embedded, "completion_last", completion="Because it is calm.") == "."
    assert words(embedded, "token:-1", completion="Because it is calm.") == "."
    assert words(embedded, "turn_boundary:-2", completion="Because it is calm.") == "istant"


def test_a_completion_follows_the_prefill(embedded):
    question = Question((Message("user", "Name a colour."),), prefill="My colour is")
    rendered = embedded.render(question, " blue.")
    assert rendered.text.endswith("assistant\nMy colour is blue.")
    assert words(embedded, "completion", question, " blue.") == " blue."
    assert words(embedded, "decision", question, " blue.") == " is"


def test_the_name_of_a_special_token_inside_a_completion_is_plain_text(embedded):
    rendered = embedded.render(CHAT, "Sure.<|im_end|>\nMore.")
    start, end = rendered.spans["completion"]
    assert rendered.content[start:end].all()
    assert embedded.renderer.decode(rendered.token_ids[start:end].tolist()) == "Sure.<|im_end|>\nMore."


def test_an_empty_completion_is_refused(embedded):
    with pytest.raises(ValueError, match="has no tokens"):
        embedded.render(CHAT, "")


def test_a_completion_beside_a_span_of_that_name_is_refused(embedded):
    question = Question((Message("user", "Rate this."),), spans=(Span("completion", 0, 0, 4),))
    with pytest.raises(ValueError, match="span 'completion' of its own"):
        embedded.render(question, "Good.")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_end_of_turn_is_the_templates_own_token(family):
    assert words(tiny(family), "end_of_turn", Question((Message("user", "Hello"),))) == "<|end|>"


@pytest.mark.parametrize(
    ("position", "complaint"),
    [
        ("turn:3", "outside this chat of 3 messages"),
        ("turn_boundary:-40", r"outside the turn boundary, which has \d+ tokens"),
        ("completion_mean", "no span 'completion'; it has"),
        ("token:4000", "outside this prompt of"),
    ],
)
def test_what_a_prompt_lacks_is_named(embedded, position, complaint):
    with pytest.raises(ValueError, match=complaint):
        words(embedded, position)


def test_a_template_without_an_end_of_turn_says_so():
    with pytest.raises(ValueError, match="writes no token that ends a turn"):
        words(tiny("gpt2"), "end_of_turn", Question((Message("user", "Hello"),)))


@pytest.mark.parametrize("text", ["", "Task", "task_", "turn_boundary:1", "turn_boundary:0", "token:", "turn:x", "task-mean"])
def test_text_outside_the_grammar_is_refused_with_the_grammar(text):
    with pytest.raises(ValueError, match="expected one token"):
        Positions.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("task-mean", "task_mean"),
        ("Task", "task"),
        ("prompt last", "prompt_last"),
        ("turn_bondary:-3", "turn_boundary:-3"),
        ("turn_boundary:4", "turn_boundary:-4"),
        ("tokn:12", "token:12"),
    ],
)
def test_a_misspelt_position_is_recognised(text, meant):
    with pytest.raises(ValueError, match=rf"{text!r} is not a position \(did you mean '{meant}'\?\); expected one token"):
        Positions.parse(text)
    Positions.parse(meant)


@pytest.mark.parametrize("text", ["", "mean(task)", "Last token"])
def test_what_is_like_no_position_gets_no_guess(text):
    with pytest.raises(ValueError, match="is not a position; expected one token"):
        Positions.parse(text)


@pytest.mark.parametrize(
    ("position", "meant"), [("task_men", "task_mean"), ("prompt_lst", "prompt_last"), ("decison", "decision")]
)
def test_a_misspelt_position_that_could_be_a_span_is_recognised_at_the_prompt(embedded, position, meant):
    with pytest.raises(ValueError, match=rf"has no span '\w+' \(did you mean '{meant}'\?\); it has \['task'\]"):
        words(embedded, position)


@pytest.mark.parametrize("position", ["task_a", "task_b_mean"])
def test_a_usual_span_that_a_prompt_lacks_is_no_misspelling(embedded, position):
    with pytest.raises(ValueError, match=r"has no span 'task_[ab]'; it has \['task'\]"):
        words(embedded, position)


def test_runs_of_tokens_stand_for_each_of_them():
    assert list(map(str, Positions.parse_all(["turn_boundary:-1..-3", "task_mean", "token:0..2", "token:-1"]))) == [
        "turn_boundary:-1",
        "turn_boundary:-2",
        "turn_boundary:-3",
        "task_mean",
        "token:0",
        "token:1",
        "token:2",
        "token:-1",
    ]


selections = st.one_of(
    st.sampled_from(["prompt", "all", "task", "task_a", "completion"]), st.integers(-9, 9).map(lambda number: f"turn:{number}")
)
singles = st.one_of(
    st.sampled_from(["decision", "end_of_turn"]),
    st.integers(1, 9).map(lambda number: f"turn_boundary:-{number}"),
    st.integers(-99, 99).map(lambda number: f"token:{number}"),
)
positions = st.one_of(
    singles, st.tuples(selections, st.sampled_from(["", "_first", "_last", "_mean"])).map(lambda parts: "".join(parts))
)


@given(positions)
def test_a_position_is_written_as_it_is_read(text):
    assert str(Positions.parse(text)) == text
    assert Positions.parse(str(Positions.parse(text))) == Positions.parse(text)
