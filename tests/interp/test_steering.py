"""Steering: exact on the tokens it names, absent everywhere else, the same alone, packed, in a grid and with a cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import Intervention, Push, random_directions
from store import Direction, Message, Option, Question, Sampling
from store.provenance import ModelIdentity
from tests.conftest import pair_question, tiny

LAYER = 1


def vector(model, layer=LAYER, number=0, norm=None):
    direction = random_directions(model.identity, model.d_model, layer, number + 1)[number]
    questions = [pair_question("Sing a song.", "Dance.")]
    return direction.scaled(norm) if norm else model.calibrate(direction, questions, ["task_a", "task_b"])


def naive_logits(model, question, pushes: dict[int, np.ndarray], layer=LAYER) -> torch.Tensor:
    """Next-token logits of the plain model with vectors added at given tokens by a hook written here."""
    rendered = model.render(question)

    def add(_, __, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for token, push in pushes.items():
            hidden[0, token] += torch.from_numpy(push)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.backend.blocks[layer].register_forward_hook(add)
    with torch.inference_mode():
        logits = model.backend.model(torch.tensor([rendered.token_ids.tolist()])).logits[0, -1]
    handle.remove()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("layout", ["packed", "left", "right"])
def test_a_push_on_spans_equals_a_bias_added_at_those_tokens_by_hand(layout, pair_questions):
    for family in ("llama", "gemma3", "gpt2"):
        model = tiny(family, layout=layout)
        steer = vector(model)
        unit = steer.direction.vector * steer.norm * 0.7
        letters = tuple(Option(letter, (letter,)) for letter in "AB")
        questions = [replace(question, options=letters) for question in pair_questions[:5]]
        answers = model.steered(Intervention.apart(steer, 0.7)).score(questions)
        for question, answer in zip(questions, answers, strict=True):
            rendered = model.render(question)
            a, b = (range(*rendered.spans[name]) for name in ("task_a", "task_b"))
            expected = naive_logits(model, question, {**dict.fromkeys(a, unit), **dict.fromkeys(b, -unit)})
            for letter in "AB":
                (token,) = model.renderer.tokens.continuation(rendered.text, letter)
                assert answer.log_probs[letter] == pytest.approx(expected[token].item(), abs=1e-4)


def test_a_zero_dose_changes_nothing(tiny_lm, pair_questions):
    view = tiny_lm.steered(Intervention.apart(vector(tiny_lm), 0.0))
    assert view.fingerprint == tiny_lm.fingerprint
    for a, b in zip(view.score(pair_questions), tiny_lm.score(pair_questions), strict=True):
        assert a.log_probs == b.log_probs


def test_a_steered_view_leaves_the_original_untouched(tiny_lm, pair_questions):
    before = tiny_lm.score(pair_questions)
    weights = {name: tensor.clone() for name, tensor in tiny_lm.backend.model.state_dict().items()}
    view = tiny_lm.steered(Intervention.everywhere(vector(tiny_lm), 1.0))
    steered = view.score(pair_questions)
    view.generate([replace(pair_questions[0], options=(), sampling=Sampling(max_new_tokens=3))])
    assert all(a.log_probs != pytest.approx(b.log_probs, abs=1e-3) for a, b in zip(steered, before, strict=True))
    for a, b in zip(tiny_lm.score(pair_questions), before, strict=True):
        assert a.log_probs == b.log_probs
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_lm.backend.model.state_dict().items())


def test_a_grid_of_conditions_equals_asking_each_view_by_itself(tiny_lm, pair_questions):
    views = [
        tiny_lm.steered(intervention)
        for number in range(3)
        for dose in (-0.5, 0.0, 0.5)
        for intervention in (
            Intervention.apart(vector(tiny_lm, number=number), dose),
            Intervention.everywhere(vector(tiny_lm, layer=2, number=number), dose),
        )
    ]
    asked = [(view, question) for view in views for question in pair_questions[:4]]
    together = iter(tiny_lm.score_together(asked))
    for view in views:
        for alone in view.score(pair_questions[:4]):
            assert next(together).log_probs == pytest.approx(alone.log_probs, abs=5e-5)


def test_the_blocks_below_a_steered_layer_run_once_for_a_whole_grid(pair_questions):
    model = tiny("llama")
    views = [model.steered(Intervention.apart(vector(model, layer=2), dose)) for dose in (-1.0, -0.5, 0.5, 1.0)]
    rows = {layer: 0 for layer in range(model.n_layers)}
    handles = [
        block.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: rows.__setitem__(layer, rows[layer] + kwargs["hidden_states"].shape[1]),
            with_kwargs=True,
        )
        for layer, block in enumerate(model.backend.blocks)
    ]
    model.score_together([(view, question) for view in views for question in pair_questions[:2]])
    for handle in handles:
        handle.remove()
    assert rows[0] == rows[2] > 0
    assert rows[3] > 2 * rows[0]


def test_span_steering_touches_the_residual_of_the_span_alone(tiny_lm):
    question = pair_question("Sing a song about rain.", "Dance until morning.")
    steer = vector(tiny_lm)
    view = tiny_lm.steered(Intervention((Push(steer, "task_a"),), 0.5))
    rendered = tiny_lm.render(question)
    (steered,), (plain,) = (model.residuals([question], LAYER, "token:0") for model in (view, tiny_lm))
    np.testing.assert_allclose(steered, plain, atol=1e-5)
    for token in range(len(rendered.token_ids)):
        (steered,), (plain,) = (model.residuals([question], LAYER, f"token:{token}") for model in (view, tiny_lm))
        change = (steered - plain)[0, 0]
        inside = token in range(*rendered.spans["task_a"])
        expected = steer.direction.vector * steer.norm * 0.5 if inside else np.zeros_like(change)
        np.testing.assert_allclose(change, expected, atol=2e-5 * max(1.0, np.abs(plain).max()))


def test_pushing_all_tokens_leaves_out_the_first_and_the_special_ones():
    model = tiny("llama")
    question = pair_question("Sing.", "Dance.")
    rendered = model.render(question)
    touched = Intervention.everywhere(vector(model), 1.0).touched(rendered, len(rendered.token_ids) + 2)[0]
    special = np.isin(rendered.token_ids, model.renderer.tokens.special_ids)
    assert not touched[: len(rendered.token_ids)][special].any()
    assert not touched[0]
    assert touched[len(rendered.token_ids) :].all()


def test_phases_divide_the_tokens_at_the_decision_token():
    model = tiny("llama")
    rendered = model.render(pair_question("Sing.", "Dance."))
    length = len(rendered.token_ids) + 2
    masks = {
        phase: Intervention.everywhere(vector(model), 1.0, phase).touched(rendered, length)[0]
        for phase in ("prompt", "generation", "both")
    }
    assert not masks["prompt"][rendered.decision :].any()
    assert masks["generation"][rendered.decision :].all() and not masks["generation"][: rendered.decision].any()
    np.testing.assert_array_equal(masks["prompt"] | masks["generation"], masks["both"])


def test_a_fingerprint_differs_for_every_part_of_an_intervention():
    model = tiny("llama")
    base = Intervention.apart(vector(model), 0.5)
    others = [
        base.at(0.6),
        replace(base, phase="prompt"),
        Intervention.apart(vector(model, number=1), 0.5),
        Intervention.apart(vector(model, layer=2), 0.5),
        Intervention.apart(vector(model, norm=3.0), 0.5),
        Intervention.apart(vector(model), 0.5, toward="task_b", away_from="task_a"),
        Intervention((replace(base.pushes[0], weight=0.5), base.pushes[1]), 0.5),
    ]
    fingerprints = {model.fingerprint, *(model.steered(each).fingerprint for each in (base, *others))}
    assert len(fingerprints) == 2 + len(others)


def test_a_fingerprint_differs_for_every_operation_direction_position_phase_layer_and_dose():
    model = tiny("llama")
    steer, other = vector(model), vector(model, number=1)
    found = [
        Intervention((Push(steer),), 1.0),
        Intervention.ablate(steer),
        Intervention.project_out(steer, 1.0),
        Intervention.clamp(steer, 1.0),
        Intervention.project_out(steer, 0.5),
        Intervention.clamp(steer, 0.5),
        Intervention.clamp(steer, 0.0),
        Intervention.clamp(steer.direction.scaled(2 * steer.norm), 1.0),
        Intervention.ablate(other),
        Intervention.ablate([steer, other]),
        Intervention.ablate(steer, "task_a"),
        Intervention.ablate(steer, phase="generation"),
        Intervention.ablate(steer, layers=[2]),
        Intervention.layers([steer, vector(model, layer=2)], 1.0),
    ]
    assert len({model.steered(each).fingerprint for each in found} | {model.fingerprint}) == 1 + len(found)
    # The norm is no part of what is taken out.
    assert Intervention.ablate(steer).fingerprint == Intervention.ablate(vector(model, norm=9.0)).fingerprint
    assert Intervention((Push(steer),), 1.0, operation="ablate").fingerprint == Intervention.ablate(steer).fingerprint


def test_interventions_that_change_nothing_have_the_fingerprint_of_the_untouched_model():
    model = tiny("llama")
    steer = vector(model)
    nothing = [
        Intervention.everywhere(steer, 0.0),
        Intervention.apart(steer, 0.0),
        Intervention((Push(steer, weight=0.0),), 0.4),
        Intervention.project_out(steer, 0.0),
    ]
    something = [Intervention.everywhere(steer, 1e-9), Intervention.clamp(steer, 0.0), Intervention.ablate(steer)]
    question = pair_question("Sing.", "Dance.")
    for each in nothing:
        assert each.is_identity and model.steered(each).fingerprint == model.fingerprint
        assert model.steered(each).score([question])[0].log_probs == model.score([question])[0].log_probs
    assert not any(each.is_identity for each in something)
    assert len({each.fingerprint for each in nothing}) == 1


def test_a_dose_is_a_share_of_the_mean_norm_over_the_tokens_steered(embedded):
    questions = [pair_question("Sing a song about rain.", "Dance until morning."), pair_question("Add 3 and 4.", "Sing.")]
    direction = random_directions(embedded.identity, embedded.d_model, 15, 1)[0]
    steer = embedded.calibrate(direction, questions, ["task_a", "task_b"])
    rows = [np.concatenate(embedded.residuals([q], 15, span))[:, 0] for q in questions for span in ("task_a", "task_b")]
    norms = np.linalg.norm(np.concatenate(rows), axis=1)
    assert steer.norm == pytest.approx(norms.mean(), rel=1e-4)
    assert steer.calibration["n_tokens"] == len(norms)


@pytest.mark.parametrize("dose", [float("nan"), float("inf"), 1000.0])
@pytest.mark.parametrize("make", [Intervention.everywhere, Intervention.clamp, Intervention.project_out, Intervention.apart])
def test_an_absurd_dose_is_refused(dose, make):
    with pytest.raises(ValueError, match=f"dose is {dose}"):
        make(vector(tiny("llama")), dose)


def test_what_makes_no_sense_for_an_operation_is_refused_with_a_way_out():
    model = tiny("llama")
    steer, other = vector(model), vector(model, number=1)
    almost = Direction.from_vector(steer.direction.vector + other.direction.vector, LAYER, model.identity).scaled(1.0)
    for match, make in {
        "no operation 'erase'; expected one of add, ablate, project_out, clamp": lambda: Intervention(
            (Push(steer),), 1.0, operation="erase"
        ),
        "dose is 0.5, but ablate takes the whole component out.*project_out": lambda: Intervention.ablate(steer).at(0.5),
        "weight of -1; expected 1: it has no sign": lambda: Intervention(
            (Push(steer, weight=-1.0),), 1.0, operation="project_out"
        ),
        "add needs the norm.*random at L1 on all has none: model.calibrate": lambda: Intervention(
            (Push(steer.direction),), 0.1
        ),
        "clamp needs the norm": lambda: Intervention((Push(steer.direction),), 0.1, operation="clamp"),
        "Cannot clamp random at L1.*3 directions .* span only 2 dimensions": lambda: Intervention.clamp(
            [steer, other, almost], 0.1
        ),
        "Several vectors are at L1; expected one a layer": lambda: Intervention.layers([steer, other], 0.1),
        "at least one push": lambda: Intervention.ablate([]),
        "from tiny-llama .llama, 32. and other .qwen3, 8.; expected those of one family and width": lambda: Intervention.ablate(
            [steer, Direction.from_vector(np.ones(8), LAYER, ModelIdentity("other", "qwen3", "x"))]
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            make()


def test_a_direction_that_is_no_unit_vector_is_refused():
    model = tiny("llama")
    for values in (np.zeros(32), np.full(32, np.nan), np.ones(32)):
        with pytest.raises(ValueError, match=r"direction at L1 has length .*; expected 1"):
            Push(Direction(values.astype(np.float32), LAYER, model.identity).scaled(1.0))


def test_clamped_directions_that_meet_at_a_token_by_different_names_are_refused_when_the_prompt_is_seen():
    model = tiny("llama")
    steer = vector(model)
    apart = Intervention((Push(steer, "task_a"), Push(steer, "task_b", -1.0)), 0.4, operation="clamp")
    question = pair_question("Sing.", "Dance.")
    assert model.steered(apart).score([question])[0].log_probs != model.score([question])[0].log_probs
    meeting = Intervention((Push(steer, "task_a"), Push(steer, "all", 2.0)), 0.4, operation="clamp")
    with pytest.raises(ValueError, match=r"Cannot clamp random at L1 on task_a and \+2 x random at L1 on all"):
        model.steered(meeting).score([question])


def test_a_push_that_acts_on_no_token_of_a_prompt_is_named():
    model = tiny("llama")
    steer, question = vector(model), pair_question("Sing.", "Dance.")
    for intervention, match in (
        (
            Intervention.ablate(steer, "task_a", "generation"),
            "acts on 'task_a' in phase 'generation', and no token of 'task_a'",
        ),
        (Intervention.ablate(steer, "decision", "prompt"), "acts on 'decision' in phase 'prompt'"),
        (Intervention.ablate(steer, "task"), r"no span 'task'; it has \['task_a', 'task_b'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            model.steered(intervention).score([question])


def test_an_intervention_says_what_it_does_and_where_its_norm_was_measured():
    model = tiny("llama")
    steer = vector(model)
    described = Intervention.clamp(steer, 0.5, "task_a", "prompt").describe()
    (push,) = described["pushes"]
    assert (described["operation"], described["dose"], described["phase"]) == ("clamp", 0.5, "prompt")
    assert push["norm"] == steer.norm and push["layer"] == LAYER and push["positions"] == "task_a"
    assert push["calibration"]["positions"] == ["task_a", "task_b"] and push["calibration"]["n_tokens"] > 3
    assert Intervention.ablate(steer).describe()["pushes"][0]["norm"] is None
    assert str(Intervention.apart(steer, 0.2)) == "add by 0.2: random at L1 on task_a and -1 x random at L1 on task_b"
    assert str(Intervention.ablate(steer, phase="generation")) == "ablate: random at L1 on all, generation only"
    assert str(Intervention.ablate(steer, layers=range(9))).endswith("random at L2 on all and 6 more")


def test_a_direction_of_another_model_is_refused_with_both_named(embedded):
    steer = vector(tiny("llama"))
    with pytest.raises(ValueError, match=r"tiny-llama \(llama, residual stream of 32\).*smollm2-135m"):
        embedded.steered(Intervention.everywhere(steer, 0.1))
    other_family = Direction.from_vector(np.ones(32), LAYER, ModelIdentity("other", "qwen3", "x")).scaled(1.0)
    with pytest.raises(ValueError, match=r"other \(qwen3.*tiny-llama \(llama"):
        tiny("llama").steered(Intervention.everywhere(other_family, 0.1))
    too_deep = Direction.from_vector(np.ones(32), 9, tiny("llama").identity).scaled(1.0)
    with pytest.raises(ValueError, match="layer 9; tiny-llama has layers 0 to 3"):
        tiny("llama").steered(Intervention.everywhere(too_deep, 0.1))


def test_a_mean_cannot_be_pushed():
    with pytest.raises(ValueError, match="a mean is not a token"):
        Push(vector(tiny("llama")), "task_a_mean")


@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
def test_steered_generation_with_a_cache_equals_recomputing_every_step_without_one(phase):
    for family in ("llama", "gemma3", "gpt2"):
        model = tiny(family)
        texts = ("Sing.", "Write a long poem about the sea at night.", "Add 3 and 4 and 5.")
        questions = [Question((Message("user", text),), sampling=Sampling(temperature=0, max_new_tokens=6)) for text in texts]
        intervention = Intervention.everywhere(vector(model), 0.8, phase)
        for question, answer in zip(questions, model.steered(intervention).generate(questions), strict=True):
            rendered = model.render(question)
            tokens = rendered.token_ids.tolist()
            for _ in range(6):
                touched = intervention.touched(rendered, len(tokens))[0]
                push = intervention.pushes[0].vector
                unit = torch.from_numpy(push.direction.vector * push.norm * 0.8)

                def add(_, __, output, touched=touched, unit=unit):
                    hidden = (output[0] if isinstance(output, tuple) else output).clone()
                    hidden[0, torch.from_numpy(touched)] += unit
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

                handle = model.backend.blocks[LAYER].register_forward_hook(add)
                with torch.inference_mode():
                    tokens.append(model.backend.model(torch.tensor([tokens])).logits[0, -1].argmax().item())
                handle.remove()
                if tokens[-1] in model.renderer.end_of_turn_ids:
                    tokens.pop()
                    break
            assert answer.text == model.renderer.decode(tokens[len(rendered.token_ids) :])
