"""LocalModel: a language model on this machine that can be asked, read and steered.

It is a Respondent (see `elicit`), and so is every steered view of it: whatever asks the one can ask the other.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int

from interp import embedded
from interp.backends.choice import BackendName, backend_maker
from interp.backends.protocol import Backend
from interp.batches import Layout
from interp.engine import Engine, Job
from interp.layers import LayerSpec, resolve_layers
from interp.loading import load_here, load_remote
from interp.packing_trial import packing_agrees
from interp.positions import Positions
from interp.rendering import Rendered, Renderer
from interp.scoring import OptionTree, gather_log_probs, option_tree
from interp.steering import Intervention, check_fits, reference_tokens
from store.directions import Direction, SteeringVector
from store.provenance import ModelIdentity, digest
from store.records import Answer, Outcome, Question, Sampling

OnAnswer = Callable[[int, Answer], None]
"""Hears of each answer as soon as its batch is done: the question's number, and the answer."""

_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
_TOKENS_PER_REQUEST = 16_384
"""To a remote model."""
_QUESTIONS_AT_A_TIME = 4096
"""Questions are rendered and put in order so many at a time, so that memory does not grow with their number."""


class LocalModel:
    """A causal language model with its tokenizer.

    Parameters
    ----------
    model, tokenizer
        A transformers causal language model and its tokenizer, for instance ones you built yourself; otherwise use
        `LocalModel.load`.
    name
        What tables and reports call it.
    backend
        What runs it: `hf` (the reference), `nnsight` or `transformer_lens`, or a `Backend` made already. They agree; the
        last two also open what these libraries can do (`model.backend.envoy`, `model.backend.bridge`). TransformerLens
        rebuilds the model it is given in place.
    layout
        `packed`, `left` or `right`; `auto` packs if a short trial gives what unpacked passes give, and pads otherwise.
    tokens_per_batch
        Default: 1,024 on a CPU, 16,384 on a GPU; a capture of fifty such batches or more first finds the best number by a
        short trial on the device. Halved when memory runs out.
    """

    interventions: tuple[Intervention, ...] = ()
    """Those that this view of the model is under, carried out one after the other at every layer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "model",
        backend: BackendName | Backend = "hf",
        layout: Layout | Literal["auto"] = "auto",
        tokens_per_batch: int | None = None,
    ) -> None:
        model.eval()
        self.backend: Backend = backend_maker(backend)(model, tokenizer) if isinstance(backend, str) else backend
        self.renderer = Renderer(tokenizer, _end_of_turn_ids(model, tokenizer, self.backend.vocabulary_size))
        self.identity = ModelIdentity(name, self.backend.config.model_type, self.backend.fingerprint)
        budget = tokens_per_batch or _TOKENS_PER_BATCH.get(self.device.type, 4096)
        self.engine = Engine(self.backend, "left" if layout == "auto" else layout, budget, try_budgets=tokens_per_batch is None)
        if layout == "auto" and packing_agrees(self.backend):
            self.engine.layout = "packed"

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = embedded.NAME,
        *,
        backend: BackendName = "hf",
        remote: bool = False,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        layout: Layout | Literal["auto"] = "auto",
        tokens_per_batch: int | None = None,
    ) -> Self:
        """Load a model by name.

        Parameters
        ----------
        name_or_path
            `smollm2-135m` (the embedded model), a folder with a transformers checkpoint or with an adapter (which is merged
            into the model that it names), or a Hugging Face hub id.
        backend
            What runs the model: `hf`, `nnsight` or `transformer_lens`.
        remote
            Run the model on NDIF (https://ndif.us), which keeps large ones: only its configuration and tokenizer are
            loaded here, and only the rows and logits that are asked for come back. Needs `backend="nnsight"`, a hub id of
            a model that NDIF runs, and a key for it. Scores and captures, steered or not; it does not generate text.
            Dtype and device are NDIF's.
        dtype
            `auto`: float32 on a CPU; on a GPU the checkpoint's own, with float16 replaced by bfloat16, since residual
            streams overflow float16.
        device
            `auto`: the first GPU if there is one.

        Raises
        ------
        MissingModel
            There is no such model here or on the hub; the message says what was tried.
        ValueError
            There is no such backend, or it cannot run the model in this way.
        ImportError
            The library of the backend is not installed.
        """
        name = str(name_or_path)
        if remote:
            if (dtype, device) != ("auto", "auto"):
                raise ValueError(
                    f"dtype={dtype!r}, device={device!r} cannot be chosen for a remote model; leave both at 'auto'."
                )
            model, tokenizer, made = load_remote(name, backend)
            shown, budget = name, tokens_per_batch or _TOKENS_PER_REQUEST
        else:
            model, tokenizer, made = load_here(name, backend, dtype, device)
            shown, budget = Path(name).name if Path(name).exists() else name, tokens_per_batch
        return cls(model, tokenizer, name=shown, backend=made, layout=layout, tokens_per_batch=budget)

    def __repr__(self) -> str:
        return (
            f"LocalModel({self.identity.name}, {self.n_layers} layers x {self.d_model}, {self.dtype} on {self.device}, "
            f"{self.backend.name}, {self.engine.layout}, {self.fingerprint[:12]})"
        )

    # ---- facts

    @property
    def fingerprint(self) -> str:
        """Digest of weights, dtype and configuration."""
        return self.identity.fingerprint

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.backend.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.backend.config.hidden_size

    @property
    def dtype(self) -> str:
        """Name of the dtype of weights and residual stream."""
        return str(self.backend.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where prompts go in; `meta` for a remote model."""
        return self.backend.device

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt and its answer, if the model says."""
        return getattr(self.backend.config, "max_position_embeddings", None)

    def layers(self, layers: LayerSpec | Sequence[LayerSpec]) -> tuple[int, ...]:
        """Block indices for any mixture of indices, fractions, ranges, `embed` and `all`."""
        return resolve_layers(layers, self.n_layers)

    # ---- asking

    def render(self, question: Question, completion: str | None = None) -> Rendered:
        """Render a question, and perhaps an answer to it, as this model reads it: text, tokens and spans."""
        return self.renderer.render(question, completion)

    def prompt_digest(self, question: Question) -> str:
        """Digest of everything this model reads of a question: prompt, prefill and option tokens, and the spans."""
        rendered = self.render(question)
        options = option_tree(question, rendered, self.renderer).sequences if question.options else {}
        return digest(rendered.token_ids, rendered.n_prompt, dict(rendered.spans), dict(options))

    def score(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Exact probabilities of the options of each question.

        Raises
        ------
        ValueError
            A question has no options, or options that cannot be told apart in tokens.
        """
        return self.score_together([(self, question) for question in questions], on_answer)

    def generate(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Sample text for each question (`Question.sampling` must be set); the outcome is for a parser to say."""
        return self.generate_together([(self, question) for question in questions], on_answer)

    def generate_together(
        self, asked: Sequence[tuple["LocalModel", Question]], on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Sample text for questions put to several views of this model, in shared batches."""
        answers = _Answers(len(asked), on_answer)
        jobs: list[Job] = []
        samplings: list[Sampling] = []
        numbers: list[int] = []
        for number, (view, question) in enumerate(asked):
            self._check_view(view)
            if question.sampling is None:
                raise ValueError("generate() needs Question.sampling; exact questions are for score().")
            rendered = self.render(question)
            if too_long := self._too_long(rendered, question.sampling.max_new_tokens):
                answers.put(number, too_long)
                continue
            jobs.append(Job(rendered, view.interventions))
            samplings.append(question.sampling)
            numbers.append(number)

        def done(place: int, token_ids: list[int]) -> None:
            truncated = len(token_ids) >= samplings[place].max_new_tokens
            answers.put(numbers[place], Answer(Outcome.CHOSE, text=self.renderer.decode(token_ids), truncated=truncated))

        draws = [asked[number][1].draw for number in numbers]
        self.engine.generate(jobs, samplings, draws, self.renderer.end_of_turn_ids, done)
        return answers.all()

    def score_together(self, asked: Sequence[tuple["LocalModel", Question]], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Score questions put to several views of this model in shared batches.

        Steering conditions of one prompt share its untouched tokens and every block below the steered layer, so a grid
        of doses costs a fraction of asking view by view.
        """
        answers = _Answers(len(asked), on_answer)
        for start in range(0, len(asked), _QUESTIONS_AT_A_TIME):
            self._score_part(asked, range(start, min(start + _QUESTIONS_AT_A_TIME, len(asked))), answers)
        return answers.all()

    def _score_part(self, asked: Sequence[tuple["LocalModel", Question]], part: range, answers: "_Answers") -> None:
        jobs: list[Job] = []
        trees: list[OptionTree] = []
        numbers: list[int] = []
        for number in part:
            view, question = asked[number]
            self._check_view(view)
            if not question.options:
                raise ValueError("score() needs Question.options; free text is for generate().")
            rendered = self.render(question)
            tree = option_tree(question, rendered, self.renderer)
            if too_long := self._too_long(rendered, room=1 + max(map(len, tree.prefixes))):
                answers.put(number, too_long)
                continue
            jobs.append(Job(rendered, view.interventions))
            trees.append(tree)
            numbers.append(number)

        def done(place: int, log_probs: Mapping[str, float]) -> None:
            answers.put(numbers[place], Answer.exact(asked[numbers[place]][1], log_probs))

        self.engine.score(jobs, trees, done)

    def _check_view(self, view: "LocalModel") -> None:
        if view.backend is not self.backend:
            raise ValueError(f"{view!r} is not a view of {self!r}; models are asked together only with their own views.")

    def _too_long(self, rendered: Rendered, room: int) -> Answer | None:
        length = len(rendered.token_ids) + room
        if self.context_length is None or length <= self.context_length:
            return None
        reason = f"prompt and answer take {length} tokens; {self.identity.name} has room for {self.context_length}"
        return Answer(Outcome.ERROR, error=reason)

    # ---- reading

    def next_tokens(self, question: Question, k: int = 20) -> list[tuple[int, float]]:
        """The `k` likeliest tokens at the decision token, with their probabilities."""
        found = self.engine.next_token_log_probs(Job(self.render(question), self.interventions)).exp().topk(k)
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))

    def residuals(
        self, questions: Sequence[Question], layers: LayerSpec | Sequence[LayerSpec], position: str
    ) -> list[Float[np.ndarray, "rows layers d_model"]]:
        """Residual stream of each prompt as float32: one row for positions such as `task_mean`, one a token for `all`.

        `interp.capture` streams the same to an activation store.
        """
        where = Positions.parse(position)
        found: list[np.ndarray] = [np.empty(0)] * len(questions)
        jobs = [Job(self.render(question), self.interventions) for question in questions]
        selections = [where.rows(where.tokens(job.rendered)) for job in jobs]
        self.engine.capture(jobs, selections, self.layers(layers), found.__setitem__)
        return found

    def log_likelihoods(self, questions: Sequence[Question], completions: Sequence[str]) -> list[Float[np.ndarray, " tokens"]]:
        """Log-probability of every token of a completion, in nats, given the question and what is before; none if it is empty.

        How a text would surprise this model, whoever wrote it: a steered view, for one.
        """
        jobs, tokens = self._completed(questions, completions)
        found: list[np.ndarray] = [np.empty(0)] * len(jobs)

        def done(number: int, logits: torch.Tensor) -> None:
            said = jobs[number].rendered.token_ids[tokens[number] + 1]
            found[number] = gather_log_probs(logits, np.arange(len(said)), said)

        self._read_logits(jobs, tokens, done)
        return found

    def divergences(
        self, views: Sequence["LocalModel"], questions: Sequence[Question], completions: Sequence[str]
    ) -> Float[np.ndarray, "views questions"]:
        """How far views depart from this model along a text: KL(this model || view) of the next token, in nats.

        The mean over the tokens of a completion; NaN for an empty one.

        Raises
        ------
        ValueError
            One of them is not a view of this model.
        """
        for view in views:
            self._check_view(view)
        jobs, tokens = self._completed(questions, completions)
        found = np.full((len(views), len(jobs)), np.nan)
        for number, (job, own) in enumerate(zip(jobs, tokens, strict=True)):
            own_log_probs: list[torch.Tensor] = []
            self._read_logits([job], [own], lambda _, logits, into=own_log_probs: into.append(logits.float().log_softmax(-1)))
            if not own_log_probs:
                continue
            expected = own_log_probs[0]

            def done(place: int, logits: torch.Tensor, expected: torch.Tensor = expected, number: int = number) -> None:
                other = logits.float().log_softmax(-1)
                found[place, number] = float((expected.exp() * (expected - other)).sum(-1).mean())

            self._read_logits([Job(job.rendered, view.interventions) for view in views], [own] * len(views), done)
        return found

    def _completed(
        self, questions: Sequence[Question], completions: Sequence[str]
    ) -> tuple[list[Job], list[Int[np.ndarray, " tokens"]]]:
        """Questions with what was said to them, and the tokens after which the model says it."""
        rendered = [self.render(question, text or None) for question, text in zip(questions, completions, strict=True)]
        return [Job(each, self.interventions) for each in rendered], [
            np.arange(each.decision, len(each.token_ids) - 1) for each in rendered
        ]

    def _read_logits(
        self, jobs: Sequence[Job], tokens: Sequence[Int[np.ndarray, " tokens"]], done: Callable[[int, torch.Tensor], None]
    ) -> None:
        """Like `Engine.token_logits`, without the jobs of which no token is asked."""
        some = [number for number, own in enumerate(tokens) if len(own)]
        self.engine.token_logits(
            [jobs[number] for number in some],
            [tokens[number] for number in some],
            lambda place, logits: done(some[place], logits),
        )

    # ---- steering

    def steered(self, intervention: Intervention) -> "SteeredModel":
        """Return a view of this model under an intervention. It shares the weights; this model stays as it is.

        A view can be steered again: the residual stream then goes through both, this intervention after those before.

        Raises
        ------
        ValueError
            The intervention's directions come from another kind of model.
        """
        check_fits(intervention, self.identity, self.d_model, self.n_layers)
        return SteeredModel(self, intervention)

    def reference_norm(
        self, layer: int, questions: Sequence[Question], positions: Sequence[str]
    ) -> dict[str, float | int | str | list[str]]:
        """Mean residual norm after a block over the tokens to be steered: what one unit of dose is.

        In a steered view, the norm is that of the steered stream, which is what the next push meets.

        Parameters
        ----------
        questions
            Prompts of the template that will be steered.
        positions
            The positions that will be pushed, together; special tokens are left out.

        Returns
        -------
        `norm` and `median_norm`, and how they were measured: `layer`, `positions`, `n_prompts`, `n_tokens`, `prompts`.
        """
        jobs = [Job(self.render(question), self.interventions) for question in questions]
        selections = [list(reference_tokens(job.rendered, positions)[:, None]) for job in jobs]
        norms: list[np.ndarray] = []
        self.engine.capture(jobs, selections, [layer], lambda _, rows: norms.append(np.linalg.norm(rows, axis=-1).ravel()))
        pooled = np.sort(np.concatenate(norms).astype(np.float64))
        return {
            "norm": float(pooled.mean()),
            "median_norm": float(np.median(pooled)),
            "layer": layer,
            "positions": list(positions),
            "n_prompts": len(questions),
            "n_tokens": len(pooled),
            "prompts": digest([job.rendered.token_ids for job in jobs]),
        }

    def calibrate(self, direction: Direction, questions: Sequence[Question], positions: Sequence[str]) -> SteeringVector:
        """Scale a direction by the `reference_norm` of its layer: coefficient 1.0 is one mean residual norm."""
        return direction.scaled(**self.reference_norm(direction.layer, questions, positions))  # pyright: ignore[reportArgumentType]


class SteeredModel(LocalModel):
    """A view of a LocalModel under an intervention: same weights, another fingerprint. Made by `LocalModel.steered`."""

    def __init__(self, base: LocalModel, intervention: Intervention) -> None:
        self.backend, self.renderer, self.engine = base.backend, base.renderer, base.engine
        self.interventions = (*base.interventions, intervention)
        name, fingerprint = base.identity.name, base.fingerprint
        if not base.interventions:
            name = f"{name} steered"
        if not intervention.is_identity:
            fingerprint = digest(fingerprint, intervention.fingerprint)
        self.identity = ModelIdentity(name, base.identity.family, fingerprint)


class _Answers:
    """Answers as they come, in any order."""

    def __init__(self, n: int, on_answer: OnAnswer | None) -> None:
        self._answers: list[Answer | None] = [None] * n
        self._on_answer = on_answer

    def put(self, number: int, answer: Answer) -> None:
        self._answers[number] = answer
        if self._on_answer is not None:
            self._on_answer(number, answer)

    def all(self) -> list[Answer]:
        return [answer for answer in self._answers if answer is not None]


def _end_of_turn_ids(model: Any, tokenizer: Any, vocabulary_size: int) -> tuple[int, ...]:
    """Tokens that end a turn; ids outside the vocabulary, which some configurations carry over, are left out."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(each for each in (*listed, tokenizer.eos_token_id) if each is not None and each < vocabulary_size)
