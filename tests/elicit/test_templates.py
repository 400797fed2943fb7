"""Templates are levels of axes: every one composes, names mean levels, samples are balanced, rewritings spare fields."""

from collections import Counter
from itertools import combinations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from elicit import sample_templates
from elicit.balance import balanced_design
from elicit.rewriting import light_punctuation, with_typos
from elicit.templates import TemplateError, Wordings, check_templates, modes, read_templates, template, templates
from store import END_OF_TURN

MINE = {
    "mode": "gratis",
    "minimum_mass": 0.2,
    "axes": {"phrasing": ["free"]},
    "pieces": {
        "fields": ["task"],
        "question": "Would you do this for nothing?",
        "body": "Task: {task}",
        "options": [{"label": "yes", "value": 1}, {"label": "no", "value": 0}],
    },
}


@pytest.mark.parametrize("mode", modes())
def test_every_template_of_every_mode_composes(mode):
    assert check_templates(templates(mode)) >= 100


@given(st.data())
def test_a_name_stands_for_its_levels(data):
    wordings = templates(data.draw(st.sampled_from(modes())))
    levels = {axis: data.draw(st.sampled_from(each)) for axis, each in wordings.axes.items()}
    assert wordings.levels(wordings.name(levels)) == levels


@given(st.text(alphabet="{}abAB \n", max_size=30), st.text(alphabet="{}taskb_ ", max_size=30))
def test_tasks_stand_verbatim_where_the_spans_say(first, second):
    if not first or not second:
        return
    for name in ("would_rather", "pick_one,format=tool,turns=two,place=before,tags=xml,typos=some,punctuation=light"):
        messages, spans = template("choice", name).fill({"task_a": first, "task_b": second}, after=4)
        shown = {span.name: messages[span.message - 4].content[span.start : span.end] for span in spans}
        assert shown == {"task_a": first, "task_b": second}


def test_what_the_axes_change_is_seen_in_the_prompt():
    def prompt(name: str) -> str:
        return "\n---\n".join(template("choice", name).turns)

    default = prompt("would_rather")
    assert "préférerais" in prompt("would_rather,language=fr") and "preferirías" in prompt("would_rather,language=es")
    assert "Task 1: {task_a}" in prompt("would_rather,labels=12")
    assert "First task: {task_a}" in prompt("would_rather,labels=ordinal")
    assert "<choice>A</choice>" in prompt("would_rather,format=xml")
    assert '"arguments": {"task": "B"}' in prompt("would_rather,format=tool").replace('"A"', '"B"')
    before, after = prompt("would_rather,place=before"), default
    assert before.index("Answer with") < before.index("{task_a}") and after.index("Answer with") > after.index("{task_b}")
    assert prompt("would_rather,tags=xml").count("<instructions>") == 2
    assert prompt("would_rather,situation=deployment").endswith(default)
    assert len(template("choice", "would_rather,turns=two").turns) == 3
    assert sorted(prompt("would_rather,typos=some")) == sorted(default) and prompt("would_rather,typos=some") != default
    assert "rather do\n" in prompt("would_rather,punctuation=light")


def test_answers_end_as_their_format_demands():
    assert all(not option.terminators for option in template("choice", "would_rather,labels=12").options())
    assert {option.terminators for option in template("choice", "would_rather,format=xml").options()} == {("</choice>",)}
    assert template("choice", "would_rather,format=tool").prefill.endswith('"task": "')
    for scale in ("likert_5", "percentile", "bipolar_5", "random_27_32", "ban_four"):
        assert all(END_OF_TURN in option.terminators for option in template("rating", scale).options())
        assert {option.terminators for option in template("rating", f"{scale},format=xml").options()} == {("</answer>",)}


def test_scales_count_what_they_say():
    assert list(template("rating", "ban_four").scale.values()) == [1, 2, 3, 5]
    assert list(template("rating", "random_27_32").scale) == ["27", "28", "29", "30", "31", "32"]
    assert list(template("rating", "bipolar_5").scale.values()) == list(range(-5, 6))
    assert template("rating", "fruits").scale == template("rating", "fruits_in_words").scale
    assert len(template("rating", "percentile").scale) == 100 and len(template("rating", "adjectives").scale) == 10


def test_unknown_levels_and_wordings_that_cannot_be_composed_are_named(tmp_path):
    with pytest.raises(TemplateError, match=r"no axis 'tone' .*; expected one of \['phrasing'"):
        template("choice", "would_rather,tone=warm")
    with pytest.raises(TemplateError, match=r"no language 'de' .*; expected one of \['en', 'fr', 'es'\]"):
        template("choice", "would_rather,language=de")
    assert check_templates(Wordings(MINE, "mine")) == 72
    pieces = MINE["pieces"]
    for wrong, message in (
        ({"body": "Task."}, r"Template 'free' of mode 'gratis': the prompt has {task} 0 times; expected once"),
        ({"body": "{task} {task}"}, r"{task} 2 times"),
        ({"body": "{task} {taks}"}, r"there is no piece 'taks'"),
        ({"body": "{task} {question}", "question": "{body}"}, r"hold each other"),
        ({"question": 3}, r"the piece 'question' is 3; expected a text"),
        ({"options": [{"label": "yes"}]}, r"value"),
    ):
        with pytest.raises(TemplateError, match=message):
            check_templates(Wordings(MINE | {"pieces": pieces | wrong}, "mine"))
    with pytest.raises(TemplateError, match=r"(?s)mine is not a file of wordings: .*minimum_mas\n"):
        Wordings({name: value for name, value in MINE.items() if name != "minimum_mass"} | {"minimum_mas": 0.5}, "mine")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    assert read_templates(tmp_path / "mine.yaml").template("free").prefill == ""
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(TemplateError, match="is not YAML"):
        read_templates(tmp_path / "mine.yaml")


@given(st.text(max_size=60))
def test_rewritings_spare_fields_and_labels(text):
    instruction = f'Choose {{task_a}} <choice>Banana</choice> "Task B" {text.replace("{", "").replace("}", "")}'
    for rewritten in (with_typos(instruction), light_punctuation(instruction)):
        assert "{task_a}" in rewritten and "<choice>Banana</choice>" in rewritten and '"Task B"' in rewritten
    assert Counter(with_typos(instruction)) == Counter(instruction)


@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), st.integers(1, 30), st.integers(0, 3))
def test_samples_use_every_level_of_every_axis_equally_often(sizes, n, seed):
    design = balanced_design(sizes, n, seed)
    for axis, size in enumerate(sizes):
        counts = [int((design[:, axis] == level).sum()) for level in range(size)]
        assert sum(counts) == n and max(counts) - min(counts) <= 1


def test_pairs_of_levels_are_balanced_where_that_is_possible():
    for sizes, n in (([3, 3, 3, 3], 9), ([2, 2, 2], 4), ([3, 3, 2], 18)):
        design = balanced_design(sizes, n)
        for one, other in combinations(range(len(sizes)), 2):
            pairs = Counter(zip(design[:, one].tolist(), design[:, other].tolist(), strict=True))
            assert set(pairs.values()) == {n // (sizes[one] * sizes[other])}


def test_sampled_templates_vary_on_their_axes_alone():
    names = sample_templates("choice", 12, ["phrasing", "labels", "place"], fixed={"language": "fr"}, seed=1)
    assert names == sample_templates("choice", 12, ["phrasing", "labels", "place"], fixed={"language": "fr"}, seed=1)
    levels = [templates("choice").levels(name) for name in names]
    assert {each["language"] for each in levels} == {"fr"} and {each["format"] for each in levels} == {"plain"}
    assert Counter(each["labels"] for each in levels) == {"AB": 4, "12": 4, "ordinal": 4}
    with pytest.raises(TemplateError, match=r"no axes \['tone'\]"):
        sample_templates("choice", 4, ["tone"])
