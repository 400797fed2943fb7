"""How probable texts are to a model, and how far steered views depart from it: against the plain model."""

import numpy as np
import pytest
import torch

from interp import Intervention, random_directions
from store import Sampling
from tests.conftest import pair_question, tiny

TEXTS = ["I would rather sing.", " B", ""]


def questions():
    return [pair_question("Sing a song.", "Dance."), pair_question("Add 2 and 3.", "Sleep."), pair_question("Run.", "Walk.")]


def plain_log_probs(model, question, text) -> torch.Tensor:
    """Next-token log-probabilities before every token of a text, from one pass of the plain model."""
    rendered = model.render(question, text)
    with torch.inference_mode():
        logits = model.backend.model(torch.tensor([rendered.token_ids.tolist()])).logits[0]
    return logits.float().log_softmax(-1)[rendered.decision : len(rendered.token_ids) - 1]


def test_log_likelihoods_are_those_of_the_plain_model(tiny_lm):
    found = tiny_lm.log_likelihoods(questions(), TEXTS)
    for question, text, own in list(zip(questions(), TEXTS, found, strict=True))[:2]:
        tokens = tiny_lm.render(question, text).token_ids
        expected = plain_log_probs(tiny_lm, question, text)
        said = tokens[len(tokens) - len(expected) :]
        np.testing.assert_allclose(own, expected[np.arange(len(said)), said], atol=2e-5)
    assert len(found[2]) == 0


@pytest.mark.parametrize("layout", ["packed", "left"])
def test_divergences_are_those_of_a_hook_written_here(layout):
    model = tiny("llama", layout=layout)
    direction = random_directions(model.identity, model.d_model, 1, 1)[0]
    push = Intervention.everywhere(direction.scaled(3.0), 1.0)
    views = [model.steered(push), model.steered(push.at(0.0)), model]
    found = model.divergences(views, questions(), TEXTS)
    assert found.shape == (3, 3) and np.isnan(found[:, 2]).all()
    np.testing.assert_allclose(found[1:, :2], 0, atol=1e-6)
    for number, (question, text) in enumerate(zip(questions()[:2], TEXTS[:2], strict=True)):
        rendered = model.render(question, text)
        added = torch.from_numpy(3.0 * direction.vector) * torch.from_numpy(rendered.content)[:, None]
        handle = model.backend.blocks[1].register_forward_hook(lambda _, __, out, added=added: out + added.float())
        after = plain_log_probs(model, question, text)
        handle.remove()
        before = plain_log_probs(model, question, text)
        expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
        assert found[0, number] == pytest.approx(float(expected), rel=1e-3) and expected > 1e-4


def test_texts_of_several_views_are_those_that_each_gives_alone(tiny_lm):
    direction = random_directions(tiny_lm.identity, tiny_lm.d_model, 1, 1)[0]
    views = [tiny_lm, tiny_lm.steered(Intervention.everywhere(direction.scaled(5.0), 1.0))]
    asked = [pair_question("Sing a song.", "Dance.", sampling=Sampling(max_new_tokens=6), draw=draw) for draw in range(3)]
    together = tiny_lm.generate_together([(view, question) for view in views for question in asked])
    alone = [answer for view in views for answer in view.generate(asked)]
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.text for each in together[:3]] != [each.text for each in together[3:]]


def test_another_model_is_no_view(tiny_lm):
    other = tiny("gpt2", seed=1)
    with pytest.raises(ValueError, match="not a view of"):
        tiny_lm.divergences([other], questions(), TEXTS)
    with pytest.raises(ValueError, match="not a view of"):
        tiny_lm.generate_together([(other, pair_question("Sing.", "Dance.", sampling=Sampling(max_new_tokens=2)))])
