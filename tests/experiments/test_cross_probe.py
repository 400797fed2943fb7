"""Cross-probing on the real model: one matrix an axis, tables that agree with the screen, and a rerun that asks nothing."""

import json
import re

import pandas as pd
import pytest

from experiments.cross_probe import CrossProbeSettings, axis_finding, run
from interp import CrossProbe

SMALL = {
    "per_origin": 3,
    "degree": 2,
    "scales": ("yes_somewhat_no",),
    "layers": (0.5, 0.25),
    "permutations": 39,
    "halves": 20,
    "personas": {"plain": "", "weary": "You are tired of your work."},
}
AXES = {
    "targets": ("utility", "self_report"),
    "wordings": ("would_rather", "enjoy_more"),
    "personas": ("plain", "weary"),
    "layers": ("L7", "L15"),
    "positions": ("task_mean", "prompt_last"),
}
REFERENCES = {axis: levels[0] for axis, levels in AXES.items()} | {"layers": "L15"}


@pytest.fixture(scope="module")
def once(tmp_path_factory, embedded):
    """One run, and what it left."""
    patched = pytest.MonkeyPatch()
    patched.setattr("interp.LocalModel.load", classmethod(lambda *_, **__: embedded))
    path = tmp_path_factory.mktemp("cross") / "r"
    yield CrossProbeSettings(out=path, **SMALL), run(CrossProbeSettings(out=path, **SMALL))
    patched.undo()


def test_every_axis_has_a_matrix_around_the_same_reference(once):
    settings, result = once
    transfer = pd.read_parquet(settings.out / "tables/transfer.parquet")
    cosine = pd.read_parquet(settings.out / "tables/cosine.parquet")
    assert {axis: tuple(dict.fromkeys(part["trained_on"])) for axis, part in transfer.groupby("axis", sort=False)} == AXES
    assert transfer.groupby("axis").size().tolist() == [4] * 5 and cosine.groupby("axis").size().tolist() == [3] * 5
    own = transfer[transfer["trained_on"] == transfer["tested_on"]].set_index(["axis", "trained_on"])
    scores = [own.loc[(axis, reference), "pearson"] for axis, reference in REFERENCES.items()]
    assert scores == pytest.approx([scores[0]] * 5)  # the same view on every axis
    assert cosine.set_index(["axis", "a", "b"]).loc[("layers", "L7", "L15"), "labels"] == pytest.approx(1)
    assert result.summary["references"] == REFERENCES
    assert len(list((settings.out / "activations").glob("*.h5"))) == 2  # plain and weary
    for axis in AXES:
        assert (settings.out / f"figures/cross_{axis}.png").exists()


def test_the_screen_says_what_the_tables_hold(once):
    settings, result = once
    transfer = pd.read_parquet(settings.out / "tables/transfer.parquet").set_index(["axis", "trained_on", "tested_on"])
    assert [finding.name for finding in result.findings] == [axis.capitalize() for axis in AXES]
    for finding, (axis, levels) in zip(result.findings, AXES.items(), strict=True):
        for key in ((a, b) for a in levels for b in levels):
            assert f"{transfer.loc[(axis, *key), 'pearson']:+.2f} [" in finding.sentence
    assert json.loads((settings.out / "summary.json").read_text())["results"]["tasks"]["personas"] == {"n": 18, "left_out": 0}


def test_a_rerun_asks_and_captures_nothing_and_finds_the_same(once, counted):
    settings, result = once
    again = run(settings)
    assert not counted
    strip = re.compile(r"\d+ s$", re.MULTILINE)
    assert [each.sentence for each in again.findings] == [each.sentence for each in result.findings]
    assert strip.sub("", again.screen) == strip.sub("", result.screen)


def test_wrong_levels_are_errors_before_the_model_is_loaded(tmp_path):
    for changes, message in (
        ({"targets": ("joy",)}, r"no labels of \['joy'\]; these settings measure"),
        ({"wordings": ("nope",)}, "nope"),
        ({"positions": ("task",)}, r"\['task'\] have a row for every token"),
        ({"wordings": ("would_rather", "would_rather")}, "each level once"),
    ):
        with pytest.raises(ValueError, match=message):
            run(CrossProbeSettings(out=tmp_path / "r", model="no/such-model", **SMALL | changes))
    assert not (tmp_path / "r").exists()


def crossed(own: float, there: float, p_value: float, split_half: float, corrected: float) -> CrossProbe:
    rows = [
        {"trained_on": a, "tested_on": b, "pearson": r, "pearson_low": r - 0.2, "pearson_high": r + 0.2, "n": 72}
        | {"p_value": p_value if a != b else 0.02, "shuffled_pearson_95": 0.3}
        for a, b, r in (("a", "a", own), ("a", "b", there), ("b", "a", there), ("b", "b", own))
    ]
    cosines = [
        {"a": a, "b": b, "labels": 0.4, "cosine": c, "chance": 0.2, "p_value": 0.02, "corrected": corrected}
        | {"split_half": split_half, "split_half_low": split_half - 0.1, "split_half_high": split_half + 0.1}
        for a, b, c in (("a", "a", 1.0), ("a", "b", 0.5), ("b", "b", 1.0))
    ]
    return CrossProbe(("a", "b"), pd.DataFrame(rows), pd.DataFrame(cosines), 72, 0)


def test_findings_claim_only_what_is_shown():
    sentence = axis_finding("layers", crossed(0.6, 0.5, 0.02, 0.4, 0.9), "a").sentence
    assert "They read b: r = +0.50 [+0.30, +0.70]" in sentence and "without noise it would be +0.90" in sentence
    assert "claimed" not in sentence
    assert "read b backwards" in axis_finding("layers", crossed(0.6, -0.5, 0.02, 0.4, -0.9), "a").sentence
    null = axis_finding("targets", crossed(0.6, 0.1, 0.4, 0.05, float("nan")), "a").sentence
    assert "are not shown to read b" in null and "no transfer is claimed; with n=72 the smallest" in null
    assert "lost in noise" in null
    shuffled = axis_finding("targets", crossed(0.6, 0.25, 0.2, 0.4, 0.9), "a").sentence
    assert "shuffled labels do as well too often (p = 0.20), so no transfer is claimed" in shuffled
    nothing = axis_finding("targets", crossed(0.1, 0.1, 0.4, 0.05, float("nan")), "a").sentence
    assert "anything for them to carry over" in nothing and "no probe is claimed" in nothing


def test_of_many_levels_the_one_read_least_and_the_one_read_best_are_told():
    names = "abcde"
    both = {(x, y): crossed(0.6, 0.5 if "e" in (x, y) else 0.3, 0.02, 0.4, 0.9) for x in names for y in names if x < y}
    transfer = [each.transfer.replace({"a": x, "b": y}) for (x, y), each in both.items()]
    cosine = [each.cosine.replace({"a": x, "b": y}) for (x, y), each in both.items()]
    tables = (
        pd.concat(transfer).drop_duplicates(["trained_on", "tested_on"]),
        pd.concat(cosine).drop_duplicates(["a", "b"]),
    )
    sentence = axis_finding("layers", CrossProbe(tuple(names), *tables, 72, 0), "a").sentence
    assert "Of 4 others they read 4; of all, b least and e best." in sentence
    assert "They read c" not in sentence and "They read e: r = +0.50" in sentence
