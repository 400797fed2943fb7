"""Layouts: packed, padded left and padded right all give what each prompt gives alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from interp.batches import distinguished, lay_out, plan
from interp.packing import pack
from tests.conftest import FAMILIES, tiny

token_sequences = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=12).map(lambda tokens: np.array(tokens)), min_size=1, max_size=12
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "left", "right"])
def test_batched_scores_equal_solo_scores(family, layout, pair_questions):
    model = tiny(family, layout=layout)
    together = model.score(pair_questions)
    for question, answer in zip(pair_questions, together, strict=True):
        (alone,) = model.score([question])
        assert alone.log_probs == pytest.approx(answer.log_probs, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "left", "right"])
def test_batched_residuals_equal_solo_residuals(family, layout, pair_questions):
    model = tiny(family, layout=layout)
    for position in ("task_a_mean", "decision", "all"):
        together = model.residuals(pair_questions[:6], "all", position)
        for question, rows in zip(pair_questions, together, strict=False):
            (alone,) = model.residuals([question], "all", position)
            np.testing.assert_allclose(rows, alone, atol=2e-5 * np.abs(alone).max())


@pytest.mark.parametrize("layout", ["left", "right"])
def test_the_embedded_model_scores_alike_packed_and_padded(embedded, layout, pair_questions):
    packed = embedded.score(pair_questions[:6])
    assert embedded.engine.layout == "packed"
    embedded.engine.layout = layout
    try:
        padded = embedded.score(pair_questions[:6])
    finally:
        embedded.engine.layout = "packed"
    for a, b in zip(packed, padded, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_the_trial_of_packing(family):
    assert tiny(family).engine.layout == "packed"


def test_a_model_outside_the_attention_interface_is_padded(monkeypatch):
    # A model whose attention ignores the packing kwarg attends across prompts: the trial must notice.
    from interp import packing

    def ignore_packing(module, query, key, value, attention_mask, packing, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return mixed.transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, packing.ATTENTION, ignore_packing)
    assert tiny("llama").engine.layout == "left"


@pytest.mark.parametrize("dense", [False, True])
def test_attention_by_segment_and_by_dense_mask_agree(dense, monkeypatch, pair_questions):
    from interp import packing

    reference = tiny("gemma3", layout="left").score(pair_questions)
    monkeypatch.setattr(packing, "_is_accelerated", lambda tensor: dense)
    monkeypatch.setattr(packing, "_CLUMP_ROWS", 6)
    for a, b in zip(tiny("gemma3", layout="packed").score(pair_questions), reference, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=2e-5)


@given(token_sequences)
def test_a_packed_row_lets_each_token_see_its_own_sequence_and_nothing_else(sequences):
    packing = pack(sequences)
    for number, rows in enumerate(packing.rows):
        assert packing.position_ids[rows].tolist() == list(range(len(sequences[number])))
        assert np.concatenate(sequences)[packing.source[rows]].tolist() == sequences[number].tolist()
        last = rows[-1]
        seen = [k for k in range(last + 1) if last < packing.visible_until[k]]
        assert seen == rows.tolist()


@given(token_sequences)
def test_a_packed_row_holds_every_distinct_prefix_once(sequences):
    prefixes = {tuple(sequence[: depth + 1].tolist()) for sequence in sequences for depth in range(len(sequence))}
    assert len(pack(sequences)) == len(prefixes)


@given(token_sequences)
def test_segments_cover_the_row_and_attend_to_all_that_is_visible(sequences):
    packing = pack(sequences)
    assert [segment.start for segment in packing.segments] == [0, *(segment.stop for segment in packing.segments[:-1])]
    assert packing.segments[-1].stop == len(packing)
    for segment in packing.segments:
        keys = np.concatenate([np.arange(*run) for run in segment.runs])
        for row in range(segment.start, segment.stop):
            visible = {k for k in range(row + 1) if row < packing.visible_until[k]}
            assert visible <= set(keys.tolist())


def test_tokens_that_are_steered_differently_share_no_row():
    sequence = np.array([5, 6, 7])
    batch = lay_out([sequence, sequence], [np.array([0, 0, 0]), np.array([0, 1, 1])], "packed")
    assert batch.rows[0][0] == batch.rows[1][0]
    assert set(batch.rows[0][1:]).isdisjoint(batch.rows[1][1:])
    assert batch.treatments[0, batch.rows[1]].tolist() == [0, 1, 1]


@settings(max_examples=50)
@given(token_sequences, st.integers(1, 30), st.sampled_from(["packed", "left"]))
def test_batches_hold_every_group_once_and_respect_the_budget(sequences, budget, layout):
    groups = [[distinguished(sequence, np.zeros_like(sequence))] for sequence in sequences]
    batches = list(plan(groups, layout, budget, sequence_budget=5))
    assert sorted(number for batch in batches for number in batch) == list(range(len(groups)))
    for batch in batches:
        size = lay_out([sequences[n] for n in batch], [np.zeros_like(sequences[n]) for n in batch], layout).token_ids.size
        assert len(batch) == 1 or (size <= budget and len(batch) <= 5)


def test_running_out_of_memory_halves_the_batch_and_goes_on(pair_questions, monkeypatch):
    model = tiny("llama")
    expected = model.score(pair_questions)
    original, refused = model.backend.run, []

    def run(batch, **kwargs):
        if batch.token_ids.size > 200:
            refused.append(batch.token_ids.size)
            raise torch.OutOfMemoryError("not enough")
        return original(batch, **kwargs)

    monkeypatch.setattr(model.backend, "run", run)
    answers = model.score(pair_questions)
    assert refused
    for a, b in zip(answers, expected, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=2e-5)
