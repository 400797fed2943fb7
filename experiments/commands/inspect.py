"""penchant inspect: one answer of a measurement log, token by token, and what the model would have said instead."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from interp import LocalModel
from store import MeasurementLog
from store.measurements import Entry

_TOP = 20


def main(arguments: Sequence[str]) -> int:
    """Run `penchant inspect`."""
    import tyro

    def command(
        key: tyro.conf.Positional[str],
        log: Path,
        model: str = "smollm2-135m",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
    ) -> tuple[Entry, Annotated[LocalModel, ...]]:
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
        """
        if not log.exists():
            raise ValueError(f"There is no measurement log {log}.")
        with MeasurementLog(log) as opened:
            entry = opened.find(key)
        return entry, LocalModel.load(model, dtype=dtype, device=device)

    print(inspect(*tyro.cli(command, args=list(arguments), prog="penchant inspect")))
    return 0


def inspect(entry: Entry, model: LocalModel) -> str:
    """What the command prints."""
    question, answer = entry.question, entry.answer
    rendered = model.render(question)
    spans = {name: range(*where) for name, where in rendered.spans.items()}
    lines = [f"key         {entry.key}", f"measures    {dict(question.measures)}", f"respondent  {entry.respondent[:16]}"]
    if entry.respondent != model.fingerprint:
        lines.append(
            f"            not {model.identity.name} as loaded here ({model.fingerprint[:16]}): steered, or another model. The "
            "likeliest next tokens are those of the model as loaded."
        )
    lines += ["", "prompt"]
    for place, token_id in enumerate(rendered.token_ids):
        inside = [name for name, where in spans.items() if place in where]
        notes = [*inside, *(["decision"] if place == rendered.decision else [])]
        text = repr(model.renderer.decode([token_id], special=True))
        lines.append(f"  {place:4d}  {int(token_id):6d}  {text:24s} {', '.join(notes)}".rstrip())
    lines += ["", f"outcome     {answer.outcome.value}" + (f" ({answer.error})" if answer.error else "")]
    if answer.log_probs:
        lines.append(f"mass        {answer.mass:.4f} on the options, of at least {question.minimum_mass:g}")
        if answer.refusal_mass is not None:
            lines.append(f"refusal     {answer.refusal_mass:.4f} on openings that pick none of them")
        ranked = sorted(answer.log_probs.items(), key=lambda item: -item[1])
        lines += [f"  {label:20s} {np.exp(value):.6f}" for label, value in ranked[:_TOP]]
    if answer.text is not None:
        lines += [f"choice      {answer.choice}", f"text        {answer.text!r}"]
    lines += ["", "likeliest next tokens"]
    lines += [
        f"  {model.renderer.decode([token_id], special=True)!r:24s} {probability:.6f}"
        for token_id, probability in model.next_tokens(question, _TOP)
    ]
    return "\n".join(lines)
