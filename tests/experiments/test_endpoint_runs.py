"""Experiments that only ask run on a model behind a server; those that need its weights say so. The key is written nowhere."""

import importlib
import json
import re
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from elicit import ask
from elicit.endpoint_limits import BudgetReached
from elicit.endpoint_server import EndpointError
from experiments import position_bias, probe_sweep, prompt_search, self_vs_cross, task_consistency
from experiments.cli import main, parse_settings
from experiments.dry_run import dry_run
from experiments.position_bias import PositionBiasSettings
from experiments.probe_sweep import ProbeSweepSettings
from experiments.prompt_search import PromptSearchSettings, RewriterSettings
from experiments.self_vs_cross import SelfVsCrossSettings
from experiments.settings import ConfigError, RespondentSettings, Settings
from experiments.task_consistency import TaskConsistencySettings
from store import MeasurementLog, Option
from tests.conftest import pair_question
from tests.elicit.chat_server import ENDS, KEY, KEY_NAME, ChatServer

TEMPLATES = ("would_rather", "pick_one,labels=12")


def table(last, said):
    """A choice that leans to what is shown first and to what a checksum says, in either pair of labels."""
    lean = 0.1 * (zlib.crc32(last.encode()) % 100) / 100
    space = " " if said else ""
    chances = zip("AB12.", (0.3 + lean, 0.2, 0.28 - lean, 0.2, 1e-5), strict=True)
    return {f"{space}{label}": chance for label, chance in chances}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    with ChatServer(table, key=KEY) as started:
        yield started


def test_position_bias_runs_on_a_server_and_repeats_for_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled", "--respondent.api-key-env", KEY_NAME]
    flags += ["--out", str(tmp_path / "p"), "--per-origin", "1", "--degree", "2", "--templates", *TEMPLATES]
    settings = parse_settings("position_bias", PositionBiasSettings, flags, "")
    result = position_bias.run(settings)
    assert "Being shown first is worth from" in result.screen and "tabled (as served on 127.0.0.1:" in result.screen
    report = (tmp_path / "p/report.html").read_text()
    assert "tabled (as served on 127.0.0.1:" in report and "[user]" in report
    summary, n_requests = (tmp_path / "p/summary.json").read_text(), len(server.requests)
    position_bias.run(settings)
    assert (tmp_path / "p/summary.json").read_text() == summary
    assert len(server.requests) == n_requests
    again = PositionBiasSettings.read(tmp_path / "p/config.yaml")
    assert again.respondent == settings.respondent
    written = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert len(written) > 8 and not [path for path in written if KEY.encode() in path.read_bytes()]


def answering(last, said):
    """A server that answers choices and scales on format: labels, numbers, and what ends them."""
    if said[-1:].isdigit() or said.endswith(("yes", "no", "good", "bad", "neutral")):
        return {"\n": 0.9, ".": 0.05, ENDS: 0.04, "q": 1e-9}
    lean, space = 0.1 * (zlib.crc32(last.encode()) % 100) / 100, " " if said else ""
    chances = zip("AB12345.", (0.3 + lean, 0.2, 0.1 - lean / 2, 0.08, 0.05, 0.05, 0.05, 1e-7), strict=True)
    words = {"yes": 0.02, " yes": 0.05, "no": 0.01, " no": 0.01, ENDS: 1e-7, "\n": 1e-9}
    return {f"{space}{label}": chance for label, chance in chances} | words


@pytest.mark.parametrize(
    "name", ["bail", "opt_out", "refusal_correlation", "seed_sensitivity", "sysprompt_grid", "transitivity"]
)
def test_experiments_that_only_ask_run_on_a_server(name, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    module = importlib.import_module(f"experiments.{name}")
    with ChatServer(answering) as server:
        respondent = RespondentSettings(base_url=server.url, model="tabled")
        quick = dict(module.SETTINGS.QUICK) | {"out": tmp_path / name, "per_origin": 2, "respondent": respondent}
        result = module.run(module.SETTINGS(**quick))
        assert server.asked and "tabled (as served on 127.0.0.1:" in result.screen
        n_requests = len(server.requests)
        assert [each.sentence for each in module.run(module.SETTINGS(**quick)).findings] == [
            each.sentence for each in result.findings
        ]
        assert len(server.requests) == n_requests


def by_order_alone(last, said):
    """A server whose answers do not depend on the tasks, and that lists few tokens of what it is not asked for."""
    if said[-1:].isdigit():
        return {"\n": 0.9, ".": 0.05, ENDS: 0.04, "q": 1e-9}
    space = " " if said else ""
    return {f"{space}{label}": chance for label, chance in zip("A1B2.", (0.6, 0.3, 0.05, 0.01, 1e-9), strict=True)}


@pytest.mark.parametrize("name", ["position_bias", "opt_out", "transitivity", "active_learning", "bail", "seed_sensitivity"])
def test_a_model_that_answers_by_order_alone_is_given_no_preferences(name, tmp_path, recwarn):
    module = importlib.import_module(f"experiments.{name}")
    with ChatServer(by_order_alone) as server:
        respondent = RespondentSettings(base_url=server.url, model="tabled")
        quick = dict(module.SETTINGS.QUICK) | {"out": tmp_path / name, "per_origin": 2, "respondent": respondent}
        screen = " ".join(module.run(module.SETTINGS(**quick)).screen.split())
    assert "nan" not in screen.lower().replace("nancy", "") and not [each for each in recwarn if "divide" in str(each.message)]
    expected = {
        "position_bias": "orders cannot be compared",
        "opt_out": "no difference is claimed",
        "transitivity": "order alone decides every one",
        "active_learning": "no better prediction than chance is claimed",
        "bail": "is the most that it can be: tag 100 %, string 100 %, tool 100 % of turns",
        "seed_sensitivity": "no agreement between seeds is claimed",
    }
    assert expected[name] in screen


@pytest.mark.parametrize("name", ["sysprompt_variation", "template_sensitivity"])
def test_what_compares_preferences_says_that_there_are_none(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    with ChatServer(by_order_alone) as server:
        respondent = RespondentSettings(base_url=server.url, model="tabled")
        quick = dict(module.SETTINGS.QUICK) | {"out": tmp_path / name, "per_origin": 2, "respondent": respondent}
        with pytest.raises(ValueError, match="answered on format and not by order alone, over 0 pairs; expected"):
            module.run(module.SETTINGS(**quick))


def test_a_dry_run_says_what_a_server_would_be_asked_and_asks_it_nothing(server, tmp_path, capsys):
    flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled", "--respondent.api-key-env", KEY_NAME]
    flags += ["--out", str(tmp_path / "p"), "--per-origin", "1", "--degree", "2", "--templates", *TEMPLATES]
    prices = ["--respondent.price-per-million", "1000", "0"]
    assert main(["position_bias", "--dry-run", *flags, *prices]) == 0
    said = capsys.readouterr().out
    assert "24 questions to ask" in said and "up to about 24 requests to a server" in said
    assert "No server was asked anything" in said and "--respondent.tokenizer counts them" in said and "minutes" not in said
    read, price = (float(found.replace(",", "")) for found in re.findall(r"([\d,]+) tokens to read.*\$([\d.]+) at", said)[0])
    assert price == pytest.approx(read / 1000, abs=0.01) and not server.requests and not (tmp_path / "p").exists()
    assert main(["position_bias", *flags]) == 0 and len(server.asked) == 24
    capsys.readouterr()
    assert main(["position_bias", "--dry-run", *flags]) == 0
    assert "0 questions to ask (25 more" in capsys.readouterr().out and len(server.asked) == 24


def test_a_dry_run_counts_tokens_with_the_tokenizer_of_the_model(tmp_path, embedded):
    with ChatServer(lambda prompt, said: table(str(prompt), "")) as server:
        respondent = RespondentSettings(base_url=server.url, model="tabled", tokenizer="smollm2-135m")
        settings = PositionBiasSettings(
            out=tmp_path / "p", per_origin=1, degree=2, templates=("would_rather", "pick_one"), respondent=respondent
        )
        plan = dry_run(position_bias, settings)
        assert "tokenizer counts them" not in plan.screen
        position_bias.run(settings)
        read = [len(body["prompt"]) for body in server.requests if body.get("logprobs")]
    assert plan.table["tokens"].sum() == sum(read[-24:]) and plan.table["requests"].sum() == 24


@pytest.mark.slow
def test_a_search_whose_rewriter_is_behind_a_server_can_be_planned(counted, tmp_path):
    settings = PromptSearchSettings(
        out=tmp_path / "s",
        per_origin=2,
        anchors=2,
        replicates=2,
        n_starts=1,
        budget=2,
        batch=1,
        n_checked=2,
        n_draws=1,
        rewriter=RewriterSettings(base_url="http://127.0.0.1:9/v1", model="m"),
    )
    plan = dry_run(prompt_search, settings)
    rows = plan.table.set_index("kind")
    assert rows.loc["rewriting", "requests"] == rows.loc["rewriting", "to_ask"] > 0
    assert np.isnan(rows.loc["rewriting", "minutes"]) and rows.loc["choice", "minutes"] > 0
    assert "smollm2-135m (float32 on cpu) and m (as served on 127.0.0.1:9/v1)" in plan.screen and not plan.unfinished


LARGE, SMALL = "org/large", "small"
"""Models of one server, which answer alike in form and differently in numbers."""


@pytest.fixture
def two_models(monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    tables = {name: lambda last, said, name=name: answering(name + last, said) for name in (LARGE, SMALL)}
    with ChatServer(tables, says={name: f"Done by {name}." for name in tables}) as started:
        yield started


def consistency_settings(server, out, **respondent) -> TaskConsistencySettings:
    return TaskConsistencySettings(
        respondent=RespondentSettings(**{"base_url": server.url, "model": LARGE, "concurrency": 2} | respondent),
        models=(LARGE, SMALL),
        **{"out": out, "per_origin": 2, "templates": ("would_rather",), "scales": ("likert_5",), "degree": 2, "n_seeds": 6},
    )


def crossed_settings(server, out, **changes) -> SelfVsCrossSettings:
    respondent = RespondentSettings(base_url=server.url, model=LARGE)
    shared = {"others": (SMALL,), "doses": (), "per_origin": 2, "scales": ("likert_agreement",)}
    return SelfVsCrossSettings(respondent=respondent, out=out, **shared | changes)


def asked_of(server, name):
    return [body for body in server.asked if body["model"] == name]


def test_consistency_is_compared_between_models_of_one_server_within_one_budget(two_models, tmp_path):
    budget = 3000
    settings = consistency_settings(two_models, tmp_path / "t", model="not asked", budget_tokens=budget)
    with pytest.raises(BudgetReached, match=r"The budget of 3,000 tokens is reached: .* run the same again"):
        task_consistency.run(settings)
    n_large, n_small = (len(asked_of(two_models, name)) for name in (LARGE, SMALL))
    assert n_large > n_small > 0 and budget / 2 < 11 * len(two_models.requests) <= budget  # every request takes 11 tokens
    result = task_consistency.run(settings)
    assert len(asked_of(two_models, LARGE)) == n_large and 11 * len(two_models.requests) > budget
    assert n_large <= len(asked_of(two_models, SMALL)) < n_large + n_small  # some were answered before, and not asked again
    where = f"{LARGE}, {SMALL} (as served on 127.0.0.1:"
    assert where in result.screen and where in (tmp_path / "t/report.html").read_text()
    assert "two models, asked alike" in " ".join(result.screen.split())
    labels = [f"{name}: {wording}" for name in (LARGE, SMALL) for wording in ("would_rather", "likert_5")]
    assert pd.read_parquet(tmp_path / "t/tables/conditions.parquet")["condition"].tolist() == labels
    tasks = pd.read_parquet(tmp_path / "t/tables/tasks.parquet").pivot(index="task_id", columns="condition", values="exact")
    assert len(tasks) == 12 and not (tasks[labels[1]] == tasks[labels[3]]).any()  # each model's own answers
    model = json.loads((tmp_path / "t/summary.json").read_text())["model"]
    served = RespondentSettings(base_url=two_models.url, model=LARGE).endpoint()
    assert (model["name"], model["dtype"], model["fingerprint"]) == (LARGE, "as served", served.fingerprint)
    assert model["others"] == {SMALL: served.with_model(SMALL).fingerprint}
    n_requests = len(two_models.requests)
    assert task_consistency.run(TaskConsistencySettings.read(tmp_path / "t/config.yaml")).summary == result.summary
    assert len(two_models.requests) == n_requests


def test_a_dry_run_of_several_models_counts_all_of_them(tmp_path):
    respondent = RespondentSettings(base_url="http://127.0.0.1:9/v1", model=LARGE)
    settings = SelfVsCrossSettings(
        out=tmp_path / "s", per_origin=1, respondent=respondent, others=(SMALL,), doses=(), scales=("yes_somewhat_no",)
    )
    plan = dry_run(self_vs_cross, settings)
    rows = plan.table.set_index("kind")
    assert rows.loc["completion", "to_ask"] == 12 and rows.loc["rating", "to_ask"] == 24 and not plan.unfinished
    assert f"{LARGE} (as served on 127.0.0.1:9/v1) and {SMALL} (as served on" in plan.screen


def test_without_names_the_servers_own_model_is_asked(two_models, tmp_path):
    settings = consistency_settings(two_models, tmp_path / "t", model=SMALL, budget_tokens=500)
    with pytest.raises(BudgetReached):
        task_consistency.run(settings.model_copy(update={"models": ()}))
    assert asked_of(two_models, SMALL) and {body["model"] for body in two_models.requests} == {SMALL}


def test_models_of_one_server_rate_each_others_work(two_models, tmp_path):
    settings = crossed_settings(two_models, tmp_path / "c")
    first = settings.load_tasks()[0].text
    refusal = 400, '{"error": {"message": "the prompt is too long"}}', {}
    two_models.fault = lambda body: refusal if body["messages"][-1]["content"] == first else None
    result = self_vs_cross.run(settings)
    where = f"{LARGE}, {SMALL} (as served on 127.0.0.1:"
    report = (tmp_path / "c/report.html").read_text()
    assert where in result.screen and where in report and "teered views" not in report
    assert first not in report  # a task that was not done is no example
    assert set(result.summary["own_work"]) == {LARGE, SMALL, "all"}
    cells = {(row["rated_by"], row["done_by"]): row for row in result.summary["cells"]}
    assert set(cells) == {(rater, writer) for rater in (LARGE, SMALL) for writer in (LARGE, SMALL)}
    assert cells[LARGE, SMALL]["rating"] != cells[SMALL, LARGE]["rating"] and {row["n"] for row in cells.values()} == {11}
    written = pd.read_parquet(tmp_path / "c/tables/completions.parquet")
    assert len(written) == 22 and (written["text"] == "Done by " + written["writer"] + ".").all()
    two_models.fault = lambda body: None
    n_asked = len(two_models.asked)
    result = self_vs_cross.run(SelfVsCrossSettings.read(tmp_path / "c/config.yaml"))
    assert {row["n"] for row in result.summary["cells"]} == {12}
    again = two_models.asked[n_asked:]
    assert again and all(body["messages"][0]["content"] == first for body in again)  # only what had failed


def test_a_server_has_no_steered_views_and_says_so(two_models, tmp_path, capsys):
    flags = ["self_vs_cross", "--respondent.base-url", two_models.url, "--respondent.model", LARGE]
    flags += ["--out", str(tmp_path / "c")]
    for more, said in (
        (["--others", SMALL], "can only be asked. Leave them out: --doses with nothing after it.\n"),
        ([], "--doses with nothing after it. And name other models of the server with --others."),
        (["--doses"], "There is one respondent; expected two or more: name other models of the server with --others."),
    ):
        assert main([*flags, *more]) == 1
        assert said in capsys.readouterr().err
    assert not two_models.requests and not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["refusal_correlation", "self_vs_cross", "sysprompt_grid"])
def test_a_server_without_log_probabilities_is_not_made_to_write_what_nobody_can_rate(name, tmp_path, capsys):
    with ChatServer({"tabled": table, "other": table}, log_probs=False) as server:
        flags = [name, "--respondent.base-url", server.url, "--respondent.model", "tabled", "--out", str(tmp_path / "r")]
        assert main([*flags, *(["--doses", "--others", "other"] if name == "self_vs_cross" else [])]) == 1
        assert "tells no log-probabilities of 'tabled'" in capsys.readouterr().err
        assert {body["max_tokens"] for body in server.requests} == {1}  # what finds out what it can do


def test_names_of_models_are_tried_before_anything_is_asked(two_models, tmp_path):
    with pytest.raises(ConfigError, match=f"{LARGE}: named more than once"):
        self_vs_cross.run(crossed_settings(two_models, tmp_path / "a", others=(LARGE,)))
    for module, settings in (
        (self_vs_cross, crossed_settings(two_models, tmp_path / "b", others=(SMALL, "lrage"))),
        (task_consistency, consistency_settings(two_models, tmp_path / "c").model_copy(update={"models": (LARGE, "lrage")})),
    ):
        with pytest.raises(EndpointError, match="has no model 'lrage'"):
            module.run(settings)
    assert not two_models.asked


def test_what_needs_the_weights_refuses_a_server(server, tmp_path):
    respondent = {"base_url": server.url, "model": "tabled"}
    with pytest.raises(
        ConfigError, match=r"probe_sweep needs the model's weights, .*can only be asked. Leave out --respondent"
    ):
        probe_sweep.run(ProbeSweepSettings.of({"out": tmp_path / "s", "per_origin": 2, "respondent": respondent}))
    with pytest.raises(ConfigError, match="An intervention needs the model's weights"):
        Settings.of({"respondent": respondent, "intervention": tmp_path / "v.safetensors"}).load_respondent()
    assert not server.requests


def test_settings_that_do_not_name_a_server_rightly_are_errors():
    for values, message in (
        ({"base_url": "http://h/v1"}, "base_url and model belong together"),
        ({"base_url": "http://h/v1", "model": "m", "budget_usd": 1}, "budget_usd needs to know what tokens cost"),
        ({"base_url": "http://u:hunter2@h/v1", "model": "m"}, "put the key into an environment variable"),
        ({"bas_url": "x"}, "did you mean 'respondent.base_url'"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            Settings.of({"respondent": values})
        assert "hunter2" not in str(refused.value)


def test_preflight_says_what_a_server_can_do_and_which_templates_it_can_answer(server, capsys):
    flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled", "--respondent.api-key-env", KEY_NAME]
    asked = ["--templates", "choice:would_rather", "choice:pick_one,labels=12", "rating:likert_5"]
    assert main(["preflight", *flags, *asked]) == 1
    shown = capsys.readouterr().out
    assert "tabled at 127.0.0.1:" in shown and "of the 20 likeliest tokens" in shown and KEY not in shown
    rows = {line.split()[1]: line for line in shown.splitlines() if line.strip().startswith(("choice ", "rating "))}
    assert rows["would_rather"].split()[-2] == "ok" and float(rows["would_rather"].split()[-1]) > 0
    assert "off format" in rows["likert_5"] or "not all listed" in rows["likert_5"]
    assert "1 of 3 templates" in shown


def test_preflight_of_a_server_that_cannot_be_made_to_go_on_or_lists_nothing(capsys):
    for server, code, message in (
        (ChatServer(table, prefill="never"), 1, "1 of 1 templates need a begun answer"),
        (ChatServer(table, log_probs=False), 1, "tells no log-probabilities of 'tabled', so there is no mass to look at"),
    ):
        with server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled"]
            assert main(["preflight", *flags, "--templates", "rating:likert_5"]) == code
        output = capsys.readouterr()
        assert message in output.out + output.err


def test_inspect_shows_what_a_server_was_sent_and_what_it_did_not_list(server, tmp_path, capsys):
    respondent = RespondentSettings(base_url=server.url, model="tabled", api_key_env=KEY_NAME)
    endpoint = respondent.endpoint()
    question = pair_question("Sing.", "Dance.", prefill="")
    question = replace(question, options=(*question.options, Option("C", ("C",))))
    with MeasurementLog(tmp_path / "log.sqlite") as log:
        ask([question], endpoint, log)
        key = log.to_frame()["key"][0]
    flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled", "--respondent.api-key-env", KEY_NAME]
    assert main(["inspect", key, "--log", str(tmp_path / "log.sqlite"), *flags]) == 0
    shown = capsys.readouterr().out
    assert "[user]" in shown and "Sing." in shown and "at most 0.0" in shown and "not tabled" not in shown
    likeliest = shown.split("likeliest next tokens")[1].split()
    assert likeliest[0] == "'A'" and 0.3 < float(likeliest[1]) < 0.45
