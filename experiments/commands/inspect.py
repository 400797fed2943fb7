"""penchant inspect: one answer of a measurement log, token by token, and what the model would have said instead."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from elicit import Endpoint
from experiments.settings import RespondentSettings
from interp import LocalModel
from store import Answer, MeasurementLog, Question
from store.measurements import Entry

_TOP = 20
_HERE = RespondentSettings()


def main(arguments: Sequence[str]) -> int:
    """Run `penchant inspect`."""
    import tyro

    def command(
        key: tyro.conf.Positional[str],
        log: Path,
        model: str = "smollm2-135m",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        respondent: RespondentSettings = _HERE,
    ) -> tuple[Entry, Annotated[LocalModel | Endpoint, ...]]:
        """Show one answer: prompt tokens with their spans, option probabilities and mass, and the 20 likeliest next tokens.

        Parameters
        ----------
        key
            Key of the answer, or its beginning; `penchant log export` lists all.
        log
            Measurement log.
        model
            Model that was asked.
        dtype
            Dtype of weights and residual stream.
        device
            auto, cpu, cuda, cuda:1, ...
        respondent
            The server that was asked, if it was one.
        """
        if not log.exists():
            raise ValueError(f"There is no measurement log {log}.")
        with MeasurementLog(log) as opened:
            entry = opened.find(key)
        return entry, respondent.endpoint() or LocalModel.load(model, dtype=dtype, device=device)

    print(inspect(*tyro.cli(command, args=list(arguments), prog="penchant inspect")))
    return 0


def inspect(entry: Entry, model: LocalModel | Endpoint) -> str:
    """What the command prints."""
    question, answer = entry.question, entry.answer
    lines = [f"key         {entry.key}", f"measures    {dict(question.measures)}", f"respondent  {entry.respondent[:16]}"]
    if entry.respondent != model.fingerprint:
        lines.append(
            f"            not {model.identity.name} as given here ({model.fingerprint[:16]}): steered, or another model. The "
            "likeliest next tokens are those of the model as given."
        )
    lines += ["", "prompt", *(_turns(model, question) if isinstance(model, Endpoint) else _tokens(model, question))]
    lines += ["", f"outcome     {answer.outcome.value}" + (f" ({answer.error})" if answer.error else "")]
    if answer.log_probs:
        lines.append(f"mass        {answer.mass:.4f} on the options, of at least {question.minimum_mass:g}")
        if answer.refusal_mass is not None:
            lines.append(f"refusal     {answer.refusal_mass:.4f} on openings that pick none of them")
        ranked = sorted(answer.log_probs.items(), key=lambda item: -item[1])
        lines += [f"  {label:20s} {np.exp(value):.6f}{_doubt(answer, label)}" for label, value in ranked[:_TOP]]
    if answer.text is not None:
        lines += [f"choice      {answer.choice}", f"text        {answer.text!r}"]
    lines += ["", "likeliest next tokens"]
    return "\n".join([*lines, *(f"  {text!r:24s} {probability:.6f}" for text, probability in _next_tokens(model, question))])


def _next_tokens(model: LocalModel | Endpoint, question: Question) -> list[tuple[str, float]]:
    if isinstance(model, Endpoint):
        return model.next_tokens(question, _TOP)
    found = model.next_tokens(question, _TOP)
    return [(model.renderer.decode([token_id], special=True), probability) for token_id, probability in found]


def _tokens(model: LocalModel, question: Question) -> list[str]:
    """The prompt token by token, with its spans."""
    rendered = model.render(question)
    spans = {name: range(*where) for name, where in rendered.spans.items()}
    lines = []
    for place, token_id in enumerate(rendered.token_ids):
        inside = [name for name, where in spans.items() if place in where]
        notes = [*inside, *(["decision"] if place == rendered.decision else [])]
        text = repr(model.renderer.decode([token_id], special=True))
        lines.append(f"  {place:4d}  {int(token_id):6d}  {text:24s} {', '.join(notes)}".rstrip())
    return lines


def _turns(endpoint: Endpoint, question: Question) -> list[str]:
    """The prompt as it is sent: the server's tokens are not known."""
    return [f"  {line}".rstrip() for line in endpoint.shown(question).splitlines()]


def _doubt(answer: Answer, label: str) -> str:
    """What is not known of an option that was not listed, or that differed between calls."""
    bound, spread = answer.bounds.get(label), answer.spread.get(label)
    most = f"  at most {np.exp(bound):.6f}" if bound is not None else ""
    return most + (f"  spread of its logarithm over calls {spread:.4f}" if spread else "")
