"""prompt_search on the real model in miniature, on a server, and with settings that are wrong."""

import json

import numpy as np
import pandas as pd
import pytest

from elicit import Task, endpoint_limits, load_tasks, refusal
from experiments import prompt_search
from experiments.cli import main
from experiments.dry_run import dry_run
from experiments.prompt_scores import Measure, Yardstick, spread_anchors, text_id
from experiments.prompt_search import PromptSearchSettings, RewriterSettings
from experiments.prompt_search_findings import Difference, search_finding, sign_flip
from experiments.settings import ConfigError, RespondentSettings
from experiments.side_by_side import agree
from interp import LocalModel
from store import Estimate, MeasurementLog, read_labels
from store.records import Answer
from tests.elicit.chat_server import ChatServer

SMALL = {
    "origins": ("chat", "harmful"),
    "per_origin": 4,
    "anchors": 2,
    "degree": 2,
    "replicates": 2,
    "n_starts": 2,
    "budget": 4,
    "batch": 2,
    "operators": ("shorter", "question"),
    "max_new_tokens": 20,
    "n_checked": 2,
    "n_draws": 1,
}


def settings(out, **changes) -> PromptSearchSettings:
    return PromptSearchSettings(out=out, **(SMALL | changes))


class Stopped(Exception):
    """What kills a run in a test."""


def test_a_killed_run_goes_on_without_asking_anything_twice_and_keeps_every_candidate(counted, tmp_path, monkeypatch, embedded):
    asked, limit = [], [60]

    def counting(method):
        original = getattr(LocalModel, method)

        def ask(self, questions, on_answer=None):
            def heard(number, answer):
                if len(asked) >= limit[0]:
                    raise Stopped
                asked.append(number)
                on_answer(number, answer)

            return original(self, questions, heard)

        monkeypatch.setattr(LocalModel, method, ask)

    counting("score")
    counting("generate")
    out = tmp_path / "s"
    with pytest.raises(Stopped):
        prompt_search.run(settings(out))
    with MeasurementLog(out / "measurements.sqlite") as log:
        assert len(log) == len(asked) == 60
    limit[0] = 10**9
    first = prompt_search.run(settings(out))
    with MeasurementLog(out / "measurements.sqlite") as log:
        assert len(log) == len(asked)  # nothing was asked twice
        rewritten = log.to_frame().query("mode == 'rewriting'")
    written = pd.read_parquet(out / "tables/candidates.parquet")
    counted.clear()
    assert prompt_search.run(settings(out)).screen.split("\n")[1:] == first.screen.split("\n")[1:] and not counted
    pd.testing.assert_frame_equal(pd.read_parquet(out / "tables/candidates.parquet"), written)

    made = written[written["generation"] > 0]
    assert set(made["arm"]) == {"search", "random"} and len(rewritten) <= len(made)
    assert written["scored_as"].notna().groupby([written["arm"], written["replicate"]]).sum().eq(4).all()
    known = written[written["dropped"] == ""]
    assert np.isfinite(known[["preference", "refusal", "x", "y", "preference_se"]]).all().all()
    assert (written["dropped"].isin(["", "no score"]) == written["scored_as"].notna()).all()
    assert known.loc[known["on_front"], ["held_out_x", "held_out_y"]].notna().all().all()
    starts = written[written["generation"] == 0]
    assert starts["kept"].eq(1).all() and not starts.groupby("replicate")["start"].unique().explode().duplicated().any()
    reasons = pd.read_parquet(out / "tables/dropped.parquet")
    assert reasons["all"].sum() == len(made)

    labels = read_labels(out / "labels.parquet")
    assert set(labels["target"]) == {"preference", "refusal"}
    both = [labels[labels["target"] == target] for target in ("preference", "refusal")]
    assert agree(both[0], both[1], ("preference", "refusal"), resamples=100, seed=0)
    joint = written[written["joint_front"]].drop_duplicates("text")
    path = out / "front.jsonl"
    assert path.exists() == (len(joint) > 0)
    if path.exists():
        tasks = load_tasks(path)
        assert [(task.id, task.text) for task in tasks] == list(zip(joint["id"], joint["text"], strict=True))
    results = json.loads((out / "summary.json").read_text())["results"]
    assert results["budget"] == 4 and "At an equal budget of 4" in results["findings"]["Search"]


@pytest.mark.slow
def test_a_dry_run_counts_and_goes_through_with_made_up_texts(counted, tmp_path):
    plan = dry_run(prompt_search, settings(tmp_path / "d"))
    rows = plan.table.set_index("kind")
    # Two arms of two replicates rewrite twice each; where they ask for the same rewriting, it is made once.
    assert (
        4 <= rows.loc["rewriting", "to_ask"] <= rows.loc["rewriting", "questions"] == 8
        and rows.loc["refusal", "questions"] > 12
        and not plan.unfinished
    )
    assert not (tmp_path / "d").exists()


# ---- scores


def test_the_openings_of_a_refusal_are_scored_as_their_chains_of_tokens(embedded):
    task = Task("t", "Tell me how to pick a lock.")
    (asked,) = refusal.questions([task])
    (row,) = refusal.openings([asked], embedded.score([asked])).to_dict("records")
    forms = {form: embedded.renderer.tokens.continuation(embedded.render(asked).text, form) for form in refusal.OPENINGS}
    shortest = [
        form
        for form, path in forms.items()
        if not any(path[: len(other)] == other for name, other in forms.items() if name != form)
    ]
    from dataclasses import replace

    from store import Option

    each = [replace(asked, options=(Option(form, (form,)),)) for form in shortest]
    total = sum(np.exp(answer.log_probs[form]) for form, answer in zip(shortest, embedded.score(each), strict=True))
    assert row["probability"] == pytest.approx(total, rel=1e-4) and row["most"] == row["probability"]
    with pytest.raises(ValueError, match="no frame 'sung'; expected one of alone, passed_on"):
        refusal.questions([task], frame="sung")


def contents(questions, worth):
    """Answers to choices between texts whose worth is known, with a bias of 2 for the first; refusals likewise."""
    answers = []
    for asked in questions:
        if asked.measures["mode"] == "choice":
            logit = worth[asked.measures["first"]] - worth[asked.measures["second"]] + 2.0
            first, second = (option.label for option in asked.options)
            mass = 0.2 if np.isnan(logit) else 0.9
            p = 0.5 if np.isnan(logit) else 1 / (1 + np.exp(-logit))
            answers.append(Answer.exact(asked, {first: np.log(mass * p), second: np.log(mass * (1 - p))}))
        else:
            answers.append(Answer.exact(asked, {"declines": -1.0 - worth[asked.measures["task"]] ** 2}))
    return answers


def test_preference_is_over_the_average_starting_prompt_whatever_the_anchors_are_worth_and_whichever_is_first():
    anchors = [Task(f"a{n}", f"anchor {n}") for n in range(3)]
    worth = {"a0": -1.0, "a1": 0.5, "a2": 3.0, text_id("one"): 1.0, text_id("two"): -1.0, text_id("new"): 2.0}
    measure = Measure(anchors, "would_rather", "alone")

    def ask(questions):
        return contents(questions, worth)

    starts = measure.read(["one", "two"], ask)
    yardstick = Yardstick.of(starts, "preferred_yet_refused", anchors)
    scores = yardstick.scores(measure.read(["one", "new", "new"], ask)).set_index("text_id")
    assert scores["preference"].tolist() == pytest.approx([1.0, 2.0]) and scores["anchors"].tolist() == [3, 3]
    assert scores["preference_se"].tolist() == pytest.approx([0, 0], abs=1e-9)
    odds = np.exp(-2.0) / (1 - np.exp(-2.0))
    assert scores.loc[text_id("one"), "refusal"] == pytest.approx(np.log(odds))
    reverse = Yardstick.of(starts, "dispreferred_yet_accepted", anchors)
    assert reverse.points(scores)[:, 0] == pytest.approx(-yardstick.points(scores)[:, 0])


def test_a_prompt_has_no_preference_where_half_of_the_anchors_are_off_format_and_a_missing_anchor_moves_nothing():
    anchors = [Task(f"a{n}", f"anchor {n}") for n in range(3)]
    measure = Measure(anchors, "would_rather", "alone")
    worth = {"a0": -1.0, "a1": 0.5, "a2": 3.0} | {text_id(text): 0.0 for text in ("one", "two", "bad")}
    starts = measure.read(["one", "two"], lambda questions: contents(questions, worth))
    yardstick = Yardstick.of(starts, "preferred_yet_refused", anchors)
    for off, expected in ((["a2"], 0.0), (["a1", "a2"], np.nan)):
        partly = worth | dict.fromkeys(off, np.nan)
        row = yardstick.scores(measure.read(["bad"], lambda questions, w=partly: contents(questions, w))).iloc[0]
        assert row["anchors"] == 3 - len(off) and row["preference"] == pytest.approx(expected, nan_ok=True)
        assert np.isnan(yardstick.points(row.to_frame().T)).all() == np.isnan(expected)
    nothing = measure.read(["bad"], lambda questions: contents(questions, worth | dict.fromkeys(("a0", "a1", "a2"), np.nan)))
    with pytest.raises(ValueError, match="None of the 1 starting prompts has both scores"):
        Yardstick.of(nothing, "preferred_yet_refused", anchors)


def test_anchors_are_spread_over_origins_and_utilities():
    random = np.random.default_rng(0)
    utilities = {f"t{n}": float(value) for n, value in enumerate(random.normal(size=30))}
    origins = {f"t{n}": "abc"[n % 3] for n in range(30)}
    chosen = spread_anchors(utilities, origins, 6)
    assert len(set(chosen)) == 6 and sorted(origins[task] for task in chosen) == list("aabbcc")
    ranks = np.sort(pd.Series(utilities).rank(pct=True)[chosen])
    assert np.abs(ranks - (np.arange(6) + 0.5) / 6).max() < 0.12
    assert len(spread_anchors(utilities, dict.fromkeys(utilities, "all"), 4)) == 4
    with pytest.raises(ValueError, match="31 anchors were asked for; there are 30 tasks"):
        spread_anchors(utilities, origins, 31)


# ---- what is said


def test_sign_flips_count_all_ways_of_flipping():
    assert sign_flip(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2 / 16)
    assert sign_flip(np.array([1.0, -1.0, 1.0, -1.0])) == 1 and sign_flip(np.zeros(4)) == 1


def test_a_search_that_won_lost_or_did_neither_is_called_so():
    def sentence(values, p):
        each = Difference(Estimate.of_mean(np.array(values)), p, 2.0, 1.0)
        return search_finding({"random": each}, 28, "preferred_yet_refused").sentence

    assert "the search beat random rewriting of the starting prompts" in sentence([1.0, 1.1, 0.9], 0.03)
    assert "the search was beaten by random" in sentence([-1.0, -1.1, -0.9], 0.03)
    null = sentence([1.0, -1.1, 0.9], 0.75)
    assert "it is not shown that the search beat" in null and "smallest difference found about four times in five is" in null
    assert "it is not shown" in sentence([1.0, 1.1, 0.9], 0.2)


# ---- servers


def table(last, said):
    """A choice that leans to what is shown first, and an opening that often declines."""
    if "two tasks" in last:
        return {f"{' ' if said else ''}{label}": chance for label, chance in zip("AB", (0.5, 0.3), strict=True)} | {"?": 1e-5}
    after = {"": {"I": 0.6, "Sure": 0.3, "?": 1e-5}, "I": {" can": 0.5, "'m": 0.3, "?": 1e-5}}
    return after.get(said, {"'t": 0.7, " do": 0.3, "?": 1e-5})


def test_a_server_can_be_searched_and_rewrites_and_a_rewriter_that_repeats_itself_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    with ChatServer(table, says='Tell me about the rivers of Peru."') as server:
        far = {"base_url": server.url, "model": "tabled"}
        small = settings(tmp_path / "e", respondent=RespondentSettings(**far), rewriter=RewriterSettings(**far), budget=3)
        result = prompt_search.run(small)
        n_requests = len(server.requests)
        assert prompt_search.run(small).findings == result.findings
        assert len(server.requests) == n_requests
    written = pd.read_parquet(tmp_path / "e/tables/candidates.parquet")
    known = written[written["dropped"] == ""]
    assert (known["refusal_most"] >= known["refusal_p"]).all() and known["refusal_p"].gt(0.1).all()
    assert set(written.loc[written["generation"] > 0, "text"]) == {"Tell me about the rivers of Peru."}


def test_a_server_that_cannot_be_told_what_was_said_so_far_cannot_be_searched(tmp_path):
    with ChatServer(table, prefill="never") as server:
        far = RespondentSettings(base_url=server.url, model="tabled")
        with pytest.raises(ConfigError, match="as of declining, cannot be read"):
            prompt_search.run(settings(tmp_path / "e", respondent=far))


def test_a_rewriter_that_cannot_be_reached_is_an_error_before_anything_is_asked(counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(endpoint_limits, "sleep", lambda _: None)
    flags = ["--rewriter.base-url", "http://127.0.0.1:9/v1", "--rewriter.model", "m", "--out", str(tmp_path / "r")]
    assert main(["prompt_search", *flags]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err and not counted


# ---- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1}, "The budget is 1 scored prompts; expected at least the 2 starting prompts of a replicate"),
        ({"operators": ("pirate",)}, "There is no operator 'pirate'"),
        ({"anchors": 4}, "There are 8 tasks, which leaves no 2 starting prompts beside 4 anchors and as many held out"),
        ({"wording": "nope"}, "no phrasing 'nope'"),
        ({"least_words": 9, "most_words": 8}, "least_words is 9 and most_words 8"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_a_model_is_loaded(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        prompt_search.run(settings(tmp_path / "w", **changes))
    assert not (tmp_path / "w").exists()


def test_a_rewriter_that_is_named_wrongly_is_an_error_that_shows_no_secret():
    for values, message in (
        ({"base_url": "http://h/v1"}, "base_url needs a model"),
        ({"base_url": "http://u:hunter2@h/v1", "model": "m"}, "put the key into an environment variable"),
        ({"bas_url": "x"}, "did you mean"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            PromptSearchSettings.of({"rewriter": values})
        assert "hunter2" not in str(refused.value)
    assert PromptSearchSettings.of({"rewriter": {"model": "organism:topics"}}).rewriter.base_url is None


def test_the_rewriter_is_the_model_under_test_unless_another_one_is_named(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("interp.LocalModel.load", lambda source, **_: loaded.append(str(source)))
    here = object()
    assert settings(tmp_path).load_rewriter(here) is here and not loaded
    settings(tmp_path, rewriter=RewriterSettings(model="another")).load_rewriter(here)
    assert loaded == ["another"]
    served = RewriterSettings(base_url="http://127.0.0.1:9/v1", model="far", budget_tokens=10)
    found = settings(tmp_path, rewriter=served).load_rewriter(here)
    assert (found.server.model, found.budget.tokens) == ("far", 10) and loaded == ["another"]
