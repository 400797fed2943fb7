"""Sampling: greedy agrees with transformers, draws depend on their own seed alone, and the distribution is right."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from interp.generation import draw_tokens
from store import Message, Question, Sampling
from tests.conftest import tiny


def questions(sampling: Sampling, draws: int = 1) -> list[Question]:
    texts = ("Sing.", "Write a long poem about the sea at night.", "Add 3 and 4 and 5 and then stop.")
    return [Question((Message("user", text),), sampling=sampling, draw=draw) for text in texts for draw in range(draws)]


def test_greedy_text_equals_that_of_transformers_generate(tiny_lm):
    asked = questions(Sampling(temperature=0, max_new_tokens=8))
    for question, answer in zip(asked, tiny_lm.generate(asked), strict=True):
        ids = torch.tensor([tiny_lm.render(question).token_ids.tolist()])
        config = GenerationConfig(
            max_new_tokens=8, do_sample=False, eos_token_id=list(tiny_lm.renderer.end_of_turn_ids), pad_token_id=3
        )
        expected = tiny_lm.backend.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        new = [token for token in expected[0, ids.shape[1] :].tolist() if token not in tiny_lm.renderer.end_of_turn_ids]
        assert answer.text == tiny_lm.renderer.decode(new)


def test_generation_settings_that_came_with_a_model_do_not_leak_in():
    plain, configured = tiny("llama"), tiny("llama")
    configured.backend.model.generation_config.repetition_penalty = 5.0
    configured.backend.model.generation_config.top_k = 1
    asked = questions(Sampling(seed=3, max_new_tokens=8))
    assert [a.text for a in plain.generate(asked)] == [a.text for a in configured.generate(asked)]


def test_a_draw_depends_on_its_own_seed_and_not_on_its_batch():
    model = tiny("llama")
    asked = questions(Sampling(seed=1, max_new_tokens=6), draws=3)
    together = [answer.text for answer in model.generate(asked)]
    assert together == [model.generate([question])[0].text for question in asked]
    assert together == [answer.text for answer in reversed(model.generate(asked[::-1]))]
    assert len(set(together[:3])) == 3
    assert together != [answer.text for answer in model.generate(questions(Sampling(seed=2, max_new_tokens=6), draws=3))]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_draws_follow_the_tempered_and_truncated_distribution(temperature, top_p):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    probabilities = torch.softmax(logits[0] / temperature, 0).numpy()
    if top_p < 1:
        before = np.concatenate([[0], np.cumsum(probabilities)[:-1]])
        probabilities = np.where(before < top_p, probabilities, 0)
        probabilities /= probabilities.sum()
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = draw_tokens(logits.expand(4000, -1), Sampling(temperature=temperature, top_p=top_p), generators)
    shares = np.bincount(drawn.numpy(), minlength=4) / 4000
    np.testing.assert_allclose(shares, probabilities, atol=0.03)
    assert (shares[probabilities == 0] == 0).all()


def test_text_that_reaches_the_limit_is_marked_truncated(embedded):
    (short, long) = embedded.generate(
        [
            Question((Message("user", "Say hi."),), sampling=Sampling(temperature=0, max_new_tokens=60)),
            Question((Message("user", "Write a long story."),), sampling=Sampling(temperature=0, max_new_tokens=5)),
        ]
    )
    assert not short.truncated and short.text
    assert long.truncated


def test_sampling_parameters_out_of_range_are_named():
    for name, bad in (("temperature", -1), ("top_p", 0), ("max_new_tokens", 0)):
        with pytest.raises(ValueError, match=f"{name} is {bad}"):
            Sampling(**{name: bad})
