"""What every operation does to a residual: its formula at the tokens it names, nothing elsewhere, in any company."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from interp import Intervention, LocalModel, Push, random_directions
from interp.engine import Job
from interp.operations import orthonormal
from store import Message, Question, Sampling
from tests.conftest import CHATML, pair_question, tiny, tiny_model, tiny_tokenizer

LAYER = 1
QUESTION = pair_question("Sing a song about rain.", "Dance until morning.")
PHASES = ("prompt", "generation", "both")
OPERATIONS = ("add", "ablate", "project_out", "clamp")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vector(model, layer=LAYER, number=0, norm=None):
    direction = random_directions(model.identity, model.d_model, layer, number + 1)[number]
    return direction.scaled(norm) if norm else model.calibrate(direction, [QUESTION], ["task_a", "task_b"])


def oblique(model, layer=LAYER):
    """Three directions of one layer, none at right angles to another."""
    first, second, third = (vector(model, layer, number) for number in range(3))
    tilted = type(first.direction).from_vector(first.direction.vector + second.direction.vector, layer, model.identity)
    return [first, tilted.scaled(second.norm), third]


def intervention(operation, vectors, positions="all", phase="both", dose=0.7) -> Intervention:
    """One of each kind, of the same directions."""
    match operation:
        case "add":
            return Intervention(tuple(Push(each, positions) for each in vectors), dose, phase)
        case "ablate":
            return Intervention.ablate(vectors, positions, phase)
        case "project_out":
            return Intervention.project_out(vectors, dose, positions, phase)
        case "clamp":
            return Intervention.clamp(vectors, dose, positions, phase)
    raise ValueError(operation)


def formula(operation, residual, vectors, dose=0.7):
    """What becomes of residuals `(tokens, d_model)`, in float64 and written as the definitions are."""
    columns = np.stack([each.direction.vector.astype(np.float64) for each in vectors], axis=1)
    amounts = np.array([dose * each.norm for each in vectors])
    residual = np.asarray(residual, dtype=np.float64)
    within = residual @ columns @ np.linalg.inv(columns.T @ columns) @ columns.T
    match operation:
        case "add":
            return residual + columns @ amounts
        case "ablate":
            return residual - within
        case "project_out":
            return residual - dose * within
        case "clamp":
            solved = np.linalg.solve(columns.T @ columns, amounts[:, None] - columns.T @ residual.T)
            return residual + (columns @ solved).T
    raise ValueError(operation)


def stream(model, question, layers):
    """Residuals of every token of a prompt, special ones too: `(tokens, layers, d_model)`."""
    rendered, found = model.render(question), []
    every = list(np.arange(len(rendered.token_ids))[:, None])
    model.engine.capture([Job(rendered, model.interventions)], [every], layers, lambda _, rows: found.append(rows))
    return found[0]


def by_hand(model, tokens, edits):
    """Next-token log-probabilities of the plain model, its blocks' outputs edited by hooks written here."""
    handles = []
    for layer, edit in edits.items():

        def hook(_, __, output, edit=edit):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0] = torch.from_numpy(edit(hidden[0].double().numpy())).to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(model.backend.blocks[layer].register_forward_hook(hook))
    with torch.inference_mode():
        logits = model.backend.model(torch.tensor([list(tokens)])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits.log_softmax(-1)


def at_tokens(mask, change):
    """An edit of all tokens that changes those of a mask."""

    def edit(residual):
        edited = residual.copy()
        edited[mask] = change(residual[mask])
        return edited

    return edit


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("positions", ["task_a", "all", "prompt_last", "decision"])
def test_an_operation_is_its_formula_at_the_tokens_it_names_and_nothing_elsewhere(operation, n, positions):
    for family in ("llama", "gemma3", "gpt2"):
        model = tiny(family)
        vectors = oblique(model)[:n]
        does = intervention(operation, vectors, positions)
        rendered = model.render(QUESTION)
        mask = does.touched(rendered, len(rendered.token_ids))[0]
        plain, treated = (stream(each, QUESTION, [LAYER])[:, 0] for each in (model, model.steered(does)))
        scale = np.abs(plain).max()
        np.testing.assert_allclose(treated[mask], formula(operation, plain[mask], vectors), atol=3e-6 * scale)
        np.testing.assert_allclose(treated[~mask], plain[~mask], atol=1e-6 * scale)
        assert mask.any() and np.abs(treated[mask] - plain[mask]).max() > 1e-2 * scale


def test_ablation_leaves_no_component_and_touches_nothing_at_right_angles():
    model = tiny("llama")
    vectors = oblique(model)
    plain, treated = (
        stream(each, QUESTION, [LAYER])[:, 0] for each in (model, model.steered(Intervention.ablate(vectors, "prompt")))
    )
    mask = model.render(QUESTION).content.copy()
    mask[model.render(QUESTION).n_prompt :] = False
    columns = np.stack([each.direction.vector for each in vectors], axis=1)
    lengths = np.linalg.norm(plain, axis=1)
    assert (np.abs(treated[mask] @ columns).max(axis=1) < 1e-6 * lengths[mask]).all()
    assert (np.abs(plain[mask] @ columns).max(axis=1) > 1e-3 * lengths[mask]).all()
    others = np.linalg.svd(columns.T)[2][3:]  # the complement of what they span
    np.testing.assert_allclose(treated @ others.T, plain @ others.T, atol=2e-6 * lengths.max())


def test_the_order_of_ablated_directions_and_a_repeated_one_do_not_matter():
    model = tiny("llama")
    vectors = oblique(model)
    orders = [vectors, vectors[::-1], [vectors[1], vectors[0], vectors[0], vectors[2]]]
    found = [stream(model.steered(Intervention.ablate(each)), QUESTION, [LAYER, 3]) for each in orders]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5 * np.abs(found[0]).max())


def test_clamping_sets_the_component_alone_whatever_it_was():
    model = tiny("qwen3")
    vectors = oblique(model)
    for dose in (-1.5, 0.0, 0.4):
        treated = stream(model.steered(Intervention.clamp(vectors, dose)), QUESTION, [LAYER])[:, 0]
        for each in vectors:
            component = treated[model.render(QUESTION).content] @ each.direction.vector
            np.testing.assert_allclose(component, dose * each.norm, atol=3e-6 * np.abs(treated).max() * 6)
    clamped, ablated = Intervention.clamp(vectors, 0.0), Intervention.ablate(vectors)
    a, b = (stream(model.steered(each), QUESTION, [3]) for each in (clamped, ablated))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_projecting_out_goes_from_nothing_over_ablation_to_the_mirror_image():
    model = tiny("llama")
    vectors = oblique(model)
    at = {dose: model.steered(Intervention.project_out(vectors, dose)) for dose in (0.0, 1.0, 2.0)}
    plain = stream(model, QUESTION, [LAYER])[:, 0]
    np.testing.assert_array_equal(stream(at[0.0], QUESTION, [LAYER])[:, 0], plain)
    ablated = stream(model.steered(Intervention.ablate(vectors)), QUESTION, [LAYER])[:, 0]
    np.testing.assert_array_equal(stream(at[1.0], QUESTION, [LAYER])[:, 0], ablated)
    columns = np.stack([each.direction.vector for each in vectors], axis=1)
    content = model.render(QUESTION).content
    mirrored = stream(at[2.0], QUESTION, [LAYER])[:, 0]
    np.testing.assert_allclose(mirrored[content] @ columns, -plain[content] @ columns, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_allclose(np.linalg.norm(mirrored, axis=1), np.linalg.norm(plain, axis=1), rtol=1e-5)


def test_adding_at_every_token_is_a_bias_of_the_block(pair_questions):
    model, biased = tiny("gpt2"), tiny("gpt2")
    steer = vector(model)
    with torch.no_grad():  # the last thing that a GPT-2 block adds to the stream
        biased.backend.blocks[LAYER].mlp.c_proj.bias += torch.from_numpy(steer.direction.vector * steer.norm * 0.7)
    for question in pair_questions[:5]:
        kept_out = np.flatnonzero(~model.render(question).content)
        pushes = (Push(steer, "all"), *(Push(steer, f"token:{token}") for token in kept_out))
        (answer,) = model.steered(Intervention(pushes, 0.7)).score([question])
        (expected,) = biased.score([question])
        assert answer.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
        assert answer.log_probs != pytest.approx(model.score([question])[0].log_probs, abs=1e-3)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_several_layers_at_once_are_hooks_at_each(operation):
    for family in ("llama", "gemma2", "gpt2"):
        model = tiny(family)
        vectors = {layer: vector(model, layer, number=layer) for layer in (0, 1, 3)}
        does = intervention(operation, list(vectors.values()), "task_b")
        rendered = model.render(QUESTION)
        mask = does.touched(rendered, len(rendered.token_ids))[0]
        expected = by_hand(
            model,
            rendered.token_ids,
            {layer: at_tokens(mask, partial(formula, operation, vectors=[each])) for layer, each in vectors.items()},
        )
        found = dict(model.steered(does).next_tokens(QUESTION, k=500))
        assert found == pytest.approx(dict(enumerate(expected.exp().tolist())), abs=1e-5)


def test_a_span_moves_other_tokens_only_through_attention(pair_questions):
    model = tiny("llama")
    for operation in OPERATIONS:
        view = model.steered(intervention(operation, [vector(model)], "task_a"))
        for question in pair_questions[:3]:
            start, end = model.render(question).spans["task_a"]
            change = np.abs(stream(view, question, [LAYER, 2]) - stream(model, question, [LAYER, 2])).max(axis=-1)
            assert (change[:start] < 1e-5).all() and (change[end:, 0] < 1e-5).all()
            assert (change[start:end, 0] > 1e-3).all() and (change[end:, 1] > 1e-5).any()


def test_an_intervention_at_every_block_takes_a_direction_out_of_every_block():
    model = tiny("llama")
    direction = vector(model).direction
    everywhere = model.steered(Intervention.ablate(direction, layers=range(model.n_layers)))
    rows, content = stream(everywhere, QUESTION, [0, 1, 2, 3]), model.render(QUESTION).content
    assert (np.abs(rows[content] @ direction.vector) < 1e-6 * np.linalg.norm(rows[content], axis=-1)).all()
    alone = stream(model.steered(Intervention.ablate(direction)), QUESTION, [3])[content, 0]
    assert np.abs(alone @ direction.vector).max() > 1e-2


# ---- generation


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("phase", PHASES)
def test_generation_with_a_cache_equals_recomputing_every_token_without_one(operation, phase):
    for family in ("llama", "gemma3", "gpt2"):
        model = tiny(family)
        vectors = oblique(model)
        questions = [
            Question((Message("user", text),), sampling=Sampling(temperature=0, max_new_tokens=6))
            for text in ("Sing.", "Write a long poem about the sea at night.")
        ]
        does = intervention(operation, vectors, "all", phase)
        for question, answer in zip(questions, model.steered(does).generate(questions), strict=True):
            rendered = model.render(question)
            tokens = rendered.token_ids.tolist()
            for _ in range(6):
                mask = does.touched(rendered, len(tokens))[0]
                edit = at_tokens(mask, partial(formula, operation, vectors=vectors))
                tokens.append(int(by_hand(model, tokens, {LAYER: edit}).argmax()))
                if tokens[-1] in model.renderer.end_of_turn_ids:
                    tokens.pop()
                    break
            assert answer.text == model.renderer.decode(tokens[len(rendered.token_ids) :])


# ---- company


def many(model) -> list[Intervention]:
    """Interventions of every operation, at several layers, positions, phases and doses."""
    vectors = oblique(model)
    return [
        Intervention.apart(vectors[0], 0.5),
        Intervention.apart(vectors[0], -0.5),
        Intervention.everywhere(vector(model, 2), 0.3, "prompt"),
        Intervention.layers([vector(model, layer) for layer in (0, 2, 3)], 0.2),
        Intervention.ablate(vectors),
        Intervention.ablate(vectors[:1], "task_b"),
        Intervention.ablate(vector(model, 2), phase="generation"),
        Intervention.project_out(vectors[:2], 0.5),
        Intervention.project_out(vectors[:2], 2.0),
        Intervention.clamp(vectors, 0.4, "task_a"),
        Intervention.clamp(vectors[2], -0.4),
        Intervention((Push(vectors[0], "task_a"), Push(vectors[1], "task_b", -1.0)), 0.6, operation="clamp"),
    ]


@pytest.mark.parametrize("layout", ["packed", "left", "right"])
def test_a_mixture_of_operations_and_doses_in_one_batch_equals_each_question_alone(layout, pair_questions):
    for family in ("llama", "gemma3"):
        model, solo = tiny(family, layout=layout), tiny(family, layout="left")
        found = many(model)
        asked = [(model.steered(each), question) for each in found for question in pair_questions[:3]]
        asked += [(model.steered(found[4]).steered(found[0]), question) for question in pair_questions[:3]]
        answers = model.score_together(asked)
        for (view, question), answer in zip(asked, answers, strict=True):
            alone = solo
            for each in view.interventions:
                alone = alone.steered(each)
            assert answer.log_probs == pytest.approx(alone.score([question])[0].log_probs, abs=5e-5)
        first = [answer.log_probs["A"] for answer in answers[::3]]
        assert min(np.diff(sorted(first))) > 1e-4  # no two of them do the same


def test_texts_under_different_interventions_are_the_same_in_one_batch_and_alone():
    model = tiny("llama")
    questions = [
        Question((Message("user", text),), sampling=Sampling(temperature=1, seed=3, max_new_tokens=8))
        for text in ("Sing.", "Write a long poem about the sea at night.")
    ]
    vectors = oblique(model)
    views = [
        *(model.steered(intervention(operation, vectors, phase=phase)) for operation in OPERATIONS for phase in PHASES),
        model,
    ]
    alone = [[answer.text for answer in view.generate(questions)] for view in views]
    jobs = [Job(model.render(question), view.interventions) for view in views for question in questions]
    drawn: dict[int, list[int]] = {}
    sampling = questions[0].sampling
    assert sampling is not None
    model.engine.generate(jobs, [sampling] * len(jobs), [0] * len(jobs), model.renderer.end_of_turn_ids, drawn.__setitem__)
    assert [model.renderer.decode(drawn[number]) for number in range(len(jobs))] == [text for row in alone for text in row]
    assert len({tuple(row) for row in alone}) > 8


def test_an_intervention_on_a_steered_view_comes_after_the_one_before():
    model = tiny("llama")
    first, second, _ = oblique(model)
    push, without = Intervention.everywhere(first, 0.7), Intervention.ablate([second])
    rendered = model.render(QUESTION)
    mask = rendered.content
    plain = stream(model, QUESTION, [LAYER])[mask, 0]
    for order, expected in (
        ((push, without), formula("ablate", formula("add", plain, [first]), [second])),
        ((without, push), formula("add", formula("ablate", plain, [second]), [first])),
    ):
        view = model.steered(order[0]).steered(order[1])
        np.testing.assert_allclose(stream(view, QUESTION, [LAYER])[mask, 0], expected, atol=3e-6 * np.abs(plain).max())
    both = model.steered(push).steered(without)
    prints = {model.fingerprint, model.steered(push).fingerprint, model.steered(without).fingerprint, both.fingerprint}
    assert len(prints | {model.steered(without).steered(push).fingerprint}) == 5
    assert model.steered(push.at(0.0)).steered(without).fingerprint == model.steered(without).fingerprint
    assert both.steered(push.at(0.0)).fingerprint == both.fingerprint and both.identity.name == "tiny-llama steered"


def test_a_dose_of_a_steered_view_is_a_share_of_the_norm_of_the_steered_stream():
    model = tiny("llama")
    view = model.steered(Intervention.everywhere(vector(model), 3.0))
    for each in (model, view):
        norms = np.linalg.norm(each.residuals([QUESTION], LAYER, "all")[0][:, 0], axis=1)
        assert each.reference_norm(LAYER, [QUESTION], ["all"])["norm"] == pytest.approx(norms.mean(), rel=1e-5)
    assert view.calibrate(vector(model).direction, [QUESTION], ["all"]).norm > 1.5 * vector(model).norm


# ---- precision


@pytest.mark.parametrize("operation", OPERATIONS)
def test_in_bfloat16_the_change_is_made_in_float32_and_rounded_once(operation):
    model = LocalModel(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer(CHATML), name="tiny-llama")
    vectors = oblique(model)
    plain, treated = (
        stream(each, QUESTION, [LAYER])[:, 0] for each in (model, model.steered(intervention(operation, vectors)))
    )
    content = model.render(QUESTION).content
    exact = torch.from_numpy(formula(operation, plain[content], vectors)).float()
    rounded = exact.to(torch.bfloat16).float().numpy()
    assert (treated[content] != rounded).mean() < 0.01  # where the exact value lies half way between two numbers
    np.testing.assert_allclose(treated[content], rounded, rtol=2**-7, atol=1e-5)


def test_an_orthonormal_basis_spans_what_it_is_made_from():
    random = np.random.default_rng(0)
    made = random.normal(size=(3, 20))
    basis = orthonormal(np.concatenate([made, made[:1] - 2 * made[1:2]]))
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(made @ basis.T @ basis, made, atol=1e-12)


def test_an_answer_is_pushed_whatever_its_length_as_if_it_had_been_prefilled():
    """Tokens of an option are after the decision token, so a push of the prompt alone leaves them."""
    model = tiny("llama")
    steer = vector(model)
    long = replace(QUESTION, options=tuple(replace(each, forms=(f" {each.label} is the one",)) for each in QUESTION.options))
    scores = [model.steered(Intervention.everywhere(steer, 0.5, phase)).score([long])[0].log_probs["A"] for phase in PHASES]
    assert min(np.diff(sorted(scores))) > 1e-3
