"""Explore: what is joined, what the tables count, and that neighbours are called alike no more often than chance has it."""

import json

import numpy as np
import pandas as pd
import pytest

from elicit import calibration_tasks
from experiments import explore
from experiments.cli import main
from experiments.explore_findings import flips_finding, near_finding
from experiments.explored import TaskMap, explored
from experiments.hand_labels import number_label, read_hand_labels
from experiments.imports import ForeignFileError
from experiments.joined import join
from experiments.neighbourhoods import indicators, neighbourhood, neighbourhoods
from experiments.task_map import MapError, TaskRows, kept_neighbours, lay_out, nearest, of_embeddings, of_words, unit
from experiments.task_tables import order_flips, preferred_refused, said_and_chosen, top_and_bottom
from store import write_labels
from tests.experiments.made_runs import both_orders, labels_of, made_run


@pytest.fixture(scope="module")
def run_of_eighty(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("explored") / "run")


def settings(run, tmp_path, **more):
    return explore.SETTINGS(
        **{"runs": (run,), "out": tmp_path / "out", "reduce": "pca", "permutations": 99, "map": "words"} | more
    )


def numbers(values, name="x", se=None, ids=None):
    ids = [f"t{place}" for place in range(len(values))] if ids is None else ids
    table = pd.DataFrame({"task_id": ids, "value": values})
    if se is not None:
        table = table.assign(se=se, low=table["value"] - 1.96 * se, high=table["value"] + 1.96 * se)
    return number_label(name, table, "made", name, "made")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# ---- the whole


def test_a_run_becomes_a_page_a_report_and_tables(run_of_eighty, tmp_path):
    result = explore.run(settings(run_of_eighty, tmp_path))
    out = tmp_path / "out"
    for name in ("explore.html", "report.html", "summary.json", "config.yaml", "figures/map.png", "figures/said.svg"):
        assert (out / name).stat().st_size > 0, name
    table = pd.read_parquet(out / "tables" / "tasks.parquet")
    assert len(table) == 80 and table[["x", "y", "utility", "origin", "order flips"]].notna().all().all()
    assert "Page:" in result.screen and {"Map", "Neighbours", "Order flips: run"} <= {each.name for each in result.findings}
    summary = json.loads((out / "summary.json").read_text())["results"]
    assert summary["tasks"] == 80 and summary["said_and_chosen"]["spearman"]["n"] == 80


def test_a_file_of_ids_says_which_tasks_are_drawn_and_counted(run_of_eighty, tmp_path):
    ids = pd.read_parquet(run_of_eighty / "tables" / "labels.parquet")["task_id"].unique()
    kept = ids[:40]
    file = write(tmp_path / "ids.txt", "\n".join(kept))
    found = explored(settings(run_of_eighty, tmp_path, include=file))
    assert set(found.joined.ids) == set(kept) == set(found.places)
    assert all(set(label.table.index) <= set(kept) for label in found.joined.labels)
    for table in found.joined.comparisons.values():
        assert len(table) and set(table["first"]) | set(table["second"]) <= set(kept)
    hand = write(tmp_path / "hand.csv", f"task_id,mood\n{ids[0]},1\n{ids[50]},2\n")
    assert not any(
        "hand.csv" in each for each in explored(settings(run_of_eighty, tmp_path, include=file, labels=(hand,))).joined.remarks
    )
    with pytest.raises(ValueError, match="1 of 2 ids to include are not among the 80 tasks, for instance nope; the tasks are"):
        explored(settings(run_of_eighty, tmp_path, include=write(tmp_path / "bad.txt", f"{ids[0]}\nnope\n")))


def test_requests_for_calibration_are_called_controls(run_of_eighty, tmp_path):
    run = tmp_path / "run"
    controls = [task.id for task in calibration_tasks()]
    (run / "tables").mkdir(parents=True)
    write_labels(labels_of(controls, range(len(controls)), "utility", "made"), run / "tables" / "labels.parquet")
    assert set(join([run], [], [], {}).origins.values()) == {"calibration (controls)"}


@pytest.mark.slow  # half a minute: umap-learn compiles itself
def test_the_same_seed_gives_the_same_umap_and_so_the_same_page(run_of_eighty, tmp_path):
    pages = []
    for name in ("a", "b"):
        explore.run(settings(run_of_eighty, tmp_path, out=tmp_path / name, reduce="umap"))
        pages.append((tmp_path / name / "explore.html").read_bytes())
    assert pages[0] == pages[1]


def test_two_runs_keep_their_labels_apart_and_share_their_tasks(run_of_eighty, tmp_path):
    other = made_run(tmp_path / "other", seed=1, tasks=pd.read_json(run_of_eighty / "tasks.jsonl", lines=True))
    found = explored(settings(run_of_eighty, tmp_path, runs=(run_of_eighty, other)))
    names = [label.name for label in found.labels]
    assert {"utility (run)", "utility (other)", "order flips (run)", "order flips (other)"} <= set(names)
    assert len(found.joined.ids) == 80 and not found.joined.remarks
    assert [(each.preference, each.refusal) for each in found.crosses] == [
        ("utility (run)", "refusal (run)"),
        ("utility (other)", "refusal (other)"),
    ]


def test_refusals_by_two_detectors_are_two_labels(tmp_path):
    ids = [f"t{number}" for number in range(20)]
    run = tmp_path / "run"
    (run / "tables").mkdir(parents=True)
    parts = [labels_of(ids, np.linspace(0, 1, 20), "refusal", method) for method in ("phrases", "judge")]
    pd.concat(parts).to_parquet(run / "tables" / "labels.parquet")
    found = explored(settings(run, tmp_path, map="auto"))
    assert [label.name for label in found.labels] == ["refusal, phrases", "refusal, judge", "origin"]
    assert found.map is None and "not known" in found.no_map and "nowhere to be found" in found.joined.remarks[0]


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to explore; expected --runs"),
        (["--runs", "absent"], "There is no run directory absent"),
        (
            ["--runs", "RUN", "--preference", "joy"],
            "--preference is 'joy', and there is no such label of numbers; there are utility",
        ),
        (["--runs", "RUN", "--map", "activations"], "None of the runs has activations; give a store with --store"),
        (["--runs", "RUN", "--map", "embeddings"], "expected --embeddings FILE.npz"),
        (["--runs", "RUN", "--labels", "absent.csv"], "There is no file absent.csv"),
        (["--runs", "EMPTY"], "has no labels, comparisons or activations to explore"),
    ],
)
def test_what_cannot_be_explored_is_one_line(arguments, message, run_of_eighty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    named = {"RUN": str(run_of_eighty), "EMPTY": "empty"}
    assert main(["explore", *(named.get(each, each) for each in arguments), "--out", "out"]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_map_of_four_tasks_is_refused():
    texts = {f"t{number}": f"one word or {number}" for number in range(4)}
    with pytest.raises(MapError, match="There are texts of 4 of the tasks; a map needs at least 5"):
        of_words(list(texts), texts)


# ---- hand labels


def test_columns_become_numbers_categories_codes_or_texts(tmp_path):
    known = [f"t{number}" for number in range(40)]
    rows = [
        {
            "id": task,
            "valence": number / 7,
            "valence_se": 0.1,
            "mood": "glad" if number % 2 else "sad",
            "note": f"note {number}",
        }
        | {"codes": "a; b" if number % 3 else "a"}
        for number, task in enumerate(known)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "hand.csv", index=False)
    book = write(tmp_path / "book.csv", "code,description\na,asks for help\nb,asks for words\n")
    labels, remarks = read_hand_labels([tmp_path / "hand.csv", book], known)
    kinds = {label.name: label.kind for label in labels}
    assert kinds == {"valence": "number", "mood": "category", "note": "text", "codes": "codes"} and not remarks
    valence, codes = labels[0].table.loc["t7"], labels[-1]
    assert valence["low"] == pytest.approx(1 - 0.196, abs=1e-4) and valence["high"] == pytest.approx(1.196, abs=1e-4)
    assert codes.values["t1"] == ("a", "b") and codes.meanings == {"a": "asks for help", "b": "asks for words"}
    assert indicators(codes, ["t0", "t1"]).tolist() == [[1, 0], [1, 1]]


def test_a_file_of_ids_and_codes_gives_several_codes_to_a_task(tmp_path):
    file = write(tmp_path / "long.csv", "task_id,code\nt1,a\nt1,b\nt2,a\n")
    (label,), _ = read_hand_labels([file], ["t1", "t2", "t3"])
    assert label.values.to_dict() == {"t1": ("a", "b"), "t2": ("a",)}


def test_ids_that_match_no_task_are_counted_and_named(tmp_path):
    file = write(tmp_path / "hand.csv", "task_id,mood\nt1,glad\nx8,sad\nx9,sad\n")
    (label,), remarks = read_hand_labels([file], ["t1", "t2"])
    assert remarks == ["2 of 3 ids in hand.csv match no task and are left out, for instance x8, x9."]
    assert label.values.to_dict() == {"t1": "glad"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "task_id,mood\nx,glad\ny,sad\n",
            "None of the 2 ids in .* is a task's, for instance x, y; the tasks are called like t1",
        ),
        ("task_id,mood\nt1,glad\nt1,sad\n", "Row 2 of .*: the task 't1' was labelled before; expected one row a task"),
        ("task_id,code\nt1,a\nt1,a\n", "Row 2 of .*: the task 't1' has the code 'a' twice"),
        ("task_id,mood\n,glad\nt1,sad\n", "Row 1 of .*: task_id is empty"),
        ("task,mood\nt1,glad\n", "has the columns task, mood; expected task_id"),
        ("task_id\nt1\n", "has ids and no other column"),
    ],
)
def test_bad_hand_labels_are_named_with_the_way_out(tmp_path, text, message):
    with pytest.raises(ForeignFileError, match=message):
        read_hand_labels([write(tmp_path / "hand.csv", text)], ["t1", "t2"])


def test_a_code_without_a_meaning_is_an_error_where_there_is_a_codebook(tmp_path):
    file = write(tmp_path / "long.csv", "task_id,code\nt1,a\nt2,c\n")
    book = write(tmp_path / "book.csv", "code,description\na,asks for help\n")
    with pytest.raises(ForeignFileError, match=r"1 code in long.csv is not in the codebook, for instance c; it has a"):
        read_hand_labels([file, book], ["t1", "t2"])


# ---- tables


def test_flips_are_counted_as_by_hand():
    logits = [  # first, second, log-odds for the first
        ("a", "b", 1.0), ("b", "a", -2.0),  # a in both orders
        ("a", "c", 1.0), ("c", "a", 2.0),  # whatever is first
        ("b", "c", -0.5), ("c", "b", -0.1),  # whatever is second
        ("a", "d", 0.3), ("d", "a", -0.1),  # a
    ]  # fmt: skip
    table = pd.DataFrame(logits, columns=["first", "second", "logit"]).assign(p_first=0.5, outcome="chose")
    found = order_flips(table)
    assert found is not None and found.rate.value == 0.5
    flipped = found.pairs[found.pairs["flips"]]
    assert set(zip(flipped["task_1"], flipped["task_2"], strict=True)) == {("a", "c"), ("b", "c")}
    by_task = found.tasks.set_index("task_id")
    assert by_task["flips"].to_dict() == {"a": 1, "b": 1, "c": 2, "d": 0}
    assert by_task["pairs"].to_dict() == {"a": 3, "b": 2, "c": 2, "d": 1}
    row = found.pairs.set_index(["task_1", "task_2"]).loc[("a", "c")]
    assert (row["when_first"], row["when_second"]) == (1.0, -2.0)


def test_templates_whose_position_biases_cancel_are_said_to_be_pooled(tmp_path):
    ids = [f"t{number}" for number in range(20)]
    parts = [both_orders(ids, np.linspace(-1, 1, 20), bias).assign(template=f"by {bias}") for bias in (-2.0, 2.0)]
    found = order_flips(pd.concat(parts))
    assert found is not None and found.positions["by 2.0"] == pytest.approx(2, abs=0.2)
    said = flips_finding("run", found).sentence
    assert "Answers of 2 templates are averaged" in said and "cancel in part" in said
    alone = order_flips(parts[0])
    assert alone is not None and "averaged" not in flips_finding("run", alone).sentence


def test_a_run_with_comparisons_and_no_utilities_is_told_how_to_get_them(tmp_path):
    ids = [f"t{number}" for number in range(20)]
    (tmp_path / "pb" / "tables").mkdir(parents=True)
    both_orders(ids, np.linspace(-1, 1, 20), 0.4).to_parquet(tmp_path / "pb" / "tables" / "comparisons.parquet")
    result = explore.run(settings(tmp_path / "pb", tmp_path, map="auto"))
    assert f"pb has comparisons but no utilities: penchant fit {tmp_path / 'pb'} --out" in " ".join(result.screen.split())


def test_sampled_choices_flip_where_the_same_place_wins_twice():
    rows = [("a", "b", 1.0), ("b", "a", 1.0), ("a", "c", 1.0), ("c", "a", 0.0), ("b", "c", 0.0), ("c", "b", 0.0)]
    found = order_flips(pd.DataFrame(rows, columns=["first", "second", "p_first"]))
    assert found is not None and found.tasks.set_index("task_id")["flips"].to_dict() == {"a": 1, "b": 2, "c": 1}


def test_pairs_in_one_order_say_nothing_of_flips():
    table = pd.DataFrame(
        {"first": ["a", "a", "b"], "second": ["b", "c", "c"], "p_first": [0.9, 0.2, 0.4], "logit": [2, -1, -0.4]}
    )
    assert order_flips(table) is None


def test_flips_are_as_many_as_expected_where_position_is_alike_in_all_pairs():
    random = np.random.default_rng(5)
    ids = [f"t{number}" for number in range(60)]
    rows = []
    for one in range(60):
        for step in (1, 5, 11, 17):
            c, p = random.normal(), random.normal(0.4, 0.6)
            rows += [(ids[one], ids[(one + step) % 60], c + p), (ids[(one + step) % 60], ids[one], -c + p)]
    found = order_flips(pd.DataFrame(rows, columns=["first", "second", "logit"]).assign(p_first=0.5))
    assert found is not None and found.rate.low < found.expected < found.rate.high
    assert (found.tasks["p_corrected"] > 0.05).all() and 0.02 <= (found.tasks["p"] <= 0.2).mean() <= 0.3


def test_the_four_corners_add_up_and_agree_with_fisher():
    from scipy import stats

    preference, refusal = numbers([2, 1, 1, 0, -1, -2, 3, -3], "u"), numbers([1, 0.6, 0, 0, 0, 0.4, 0.9, 1], "r")
    found = preferred_refused(preference, refusal, preferred_above=0)
    assert found is not None
    assert found.counts.to_numpy().tolist() == [[3, 1], [1, 3]] and found.counts.to_numpy().sum() == len(found.tasks)
    assert found.p == pytest.approx(stats.fisher_exact([[3, 1], [1, 3]])[1])
    assert found.odds_ratio.low < found.odds_ratio.value < found.odds_ratio.high
    assert not found.tasks["sure"].any()  # no intervals were given
    again = preferred_refused(numbers([2.0, -2], se=0.1), numbers([0.9, 0.52], se=0.1))
    assert again is not None and again.tasks["sure"].tolist() == [True, False]


def test_where_nothing_is_refused_no_odds_are_given():
    found = preferred_refused(numbers([1.0, 2, 3, 4]), numbers([0.0, 0, 0, 0]))
    assert found is not None and np.isnan(found.odds_ratio.value) and found.p == 1.0
    assert found.counts["refused"].tolist() == [0, 0]


def test_only_the_task_whose_report_was_moved_is_told_apart():
    random = np.random.default_rng(2)
    chosen = random.normal(size=60)
    report = chosen + random.normal(scale=0.1, size=60)
    report[7] -= 4
    found = said_and_chosen(numbers(chosen, "u", se=0.1), numbers(report, "s", se=0.1))
    apart = found.tasks[found.tasks["apart"]]
    assert found.tested and apart["task_id"].tolist() == ["t7"] and (apart["difference"] < 0).all()
    assert found.tasks["rank_difference"].between(-1, 1).all() and found.agreement.spearman.value > 0.8
    assert not said_and_chosen(numbers(chosen, "u"), numbers(report, "s")).tested


def test_top_and_bottom_are_of_different_tasks():
    table = top_and_bottom(numbers([3.0, 1, 2]), 10)
    assert table[["end", "task_id"]].to_numpy().tolist() == [["top", "t0"], ["bottom", "t1"]]


# ---- neighbours


def test_permuted_labels_are_called_clustered_no_more_often_than_said():
    random = np.random.default_rng(0)
    near = nearest(unit(random.normal(size=(60, 8)).astype(np.float32)), 5)
    groups = np.arange(60) % 4
    found = [neighbourhood("x", random.normal(size=(60, 1)), near, groups, permutations=99, seed=seed) for seed in range(200)]
    for p in (np.array([each.p for each in found]), np.array([each.p_origin for each in found])):
        assert (p <= 0.05).mean() <= 0.1 and 0.1 <= (p <= 0.2).mean() <= 0.31


def test_intervals_of_neighbours_contain_what_is_expected_at_least_as_often_as_they_say():
    slope, found = np.random.default_rng(99).normal(size=4), []
    for seed in range(150):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(60, 4))
        values = np.tanh(rows @ slope) + 0.5 * random.normal(size=60)
        near = nearest(rows, 10)
        found.append(neighbourhood("x", values[:, None], near, np.zeros(60, int), permutations=19, seed=seed).r2)
    expected = np.mean([each.value for each in found])
    assert np.mean([each.low <= expected <= each.high for each in found]) >= 0.93


def test_what_is_of_origins_alone_is_beyond_chance_and_not_beyond_origins():
    random = np.random.default_rng(1)
    groups = np.arange(120) % 4
    rows = TaskRows([f"t{n}" for n in range(120)], unit(np.eye(4)[groups] + 0.3 * random.normal(size=(120, 4))), "made")
    origins = {task: str(group) for task, group in zip(rows.ids, groups, strict=True)}
    of_origin, of_rows = groups + random.normal(size=120), 3 * rows.rows[:, 0] + 0.2 * random.normal(size=120)
    labels = [numbers(of_origin, "of origin"), numbers(of_rows, "of rows"), numbers(random.normal(size=120), "noise")]
    table = neighbourhoods(rows, labels, origins, k=8, permutations=199).set_index("label")
    assert (table.loc[["of origin", "of rows"], "p"] < 0.02).all() and table.loc["noise", "p"] > 0.05
    assert table.loc["of rows", "p_origin"] < 0.02 and table.loc["of origin", "p_origin"] > 0.05
    assert table.loc["of rows", "r2"] > table.loc["of origin", "r2"] > table.loc["noise", "r2"]
    assert (table["smallest_gain"] > 0).all() and table["n"].dtype.kind == "i"
    assert table.loc["noise", "chance"] == pytest.approx(-1 / 8, abs=0.06)  # the mean of eight has an eighth of the variance


def test_a_gain_as_large_as_the_smallest_said_is_found_about_four_times_in_five():
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(80, 3)))
    near, groups = nearest(rows, 8), np.zeros(80, int)

    def tries(signal, seeds):
        of = [signal * rows[:, :1] + np.random.default_rng(seed).normal(size=(80, 1)) for seed in seeds]
        return [neighbourhood("x", values, near, groups, permutations=99, seed=1) for values in of]

    power = {}
    for signal in (0.3, 0.5, 0.7, 0.9):
        found = tries(signal, range(60))
        gain = np.mean([each.r2.value - each.chance for each in found])
        power[gain] = np.mean([each.p <= 0.05 for each in found])
    smallest = np.mean([each.smallest_gain for each in found])
    assert 0.65 < np.interp(smallest, list(power), list(power.values())) < 0.95


def test_a_claim_whose_interval_contains_zero_is_said_to_rest_on_its_p():
    row = {"label": "x", "n": 24, "r2": 0.1, "r2_low": -0.1, "r2_high": 0.3, "chance": -0.1, "chance_95": 0.0, "p": 0.004}
    row |= {"origin": np.nan, "p_origin": np.nan, "smallest_gain": 0.2, "p_corrected": 0.012, "p_origin_corrected": np.nan}

    def said(**other):
        return near_finding(TaskMap({}, "words", "PCA", 10, 0.5, pd.DataFrame([row | other]))).sentence

    rests = "contains 0, the claim rests on the permutation p (0.012, corrected)"
    assert rests in said() and "rests" not in said(r2_low=0.02)
    assert "is below 0, the claim rests" in said(r2=-0.04, r2_high=-0.01)
    assert "R² about 0.20 above that of permuted labels would be found" in said(p_corrected=0.4)


def test_a_task_is_not_its_own_neighbour_and_a_plane_keeps_its_own_neighbours():
    rows = np.random.default_rng(4).normal(size=(50, 2))
    found = nearest(rows, 6)
    assert found.shape == (50, 6) and not (found == np.arange(50)[:, None]).any()
    assert kept_neighbours(rows, rows, 6) == 1.0


@pytest.mark.parametrize("reduce", ["pca", pytest.param("umap", marks=pytest.mark.slow)])
def test_groups_that_are_far_apart_are_apart_on_the_map(reduce):
    random = np.random.default_rng(0)
    group = np.repeat([0, 1], 30)
    rows = unit(np.eye(10)[group] * 3 + random.normal(scale=0.3, size=(60, 10)))
    places, said = lay_out(rows, reduce, neighbours=10)
    same = group[nearest(places, 5)] == group[:, None]
    assert places.shape == (60, 2) and same.mean() > 0.95, said
    assert lay_out(rows[:5], reduce, neighbours=10)[0].shape == (5, 2)


def test_embeddings_are_joined_by_id_whatever_their_order(tmp_path):
    random = np.random.default_rng(0)
    rows, ids = random.normal(size=(8, 3)), np.array([f"t{n}" for n in range(8)])
    np.savez(tmp_path / "e.npz", task_id=ids[::-1], embeddings=rows[::-1])
    found = of_embeddings(str(tmp_path / "e.npz"), ["t3", "t1", "t0", "t2", "t5", "absent"], {})
    assert found.ids == ["t3", "t1", "t0", "t2", "t5"]
    expected = rows[[3, 1, 0, 2, 5]] - rows[[3, 1, 0, 2, 5]].mean(axis=0)
    np.testing.assert_allclose(found.rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    np.savez(tmp_path / "bad.npz", task_id=np.array(["t1", "t1"]), rows=rows[:2])
    with pytest.raises(ForeignFileError, match=r"2 ids .1 different ones. and 2 rows"):
        of_embeddings(str(tmp_path / "bad.npz"), ["t1"], {})
