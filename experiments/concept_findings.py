"""What a persona x context x dose grid shows, in sentences: the push beside controls, the prompts, both, and coherence."""

import numpy as np

from experiments.coherence import MAX_DROP, MAX_REPETITION
from experiments.concept_grid import ConceptGrid, Controls
from experiments.dose_response import CONTROLS_NEEDED
from experiments.findings import Finding, null_note, plain
from store import Estimate
from store.estimates import POWER_FACTOR

KINDS = ("random", "flipped")
"""Kinds of control."""
_MADE = {"random": "random directions", "flipped": "directions of flipped differences"}


def concept_findings(grid: ConceptGrid, worth: Estimate | None) -> list[Finding]:
    """Findings about the push, the system prompts, their interaction, and coherence."""
    return [_push(grid), _prompts(grid, worth), _interaction(grid), _coherence(grid)]


def exceeds_controls(slope: Estimate, controls: list[Controls]) -> bool:
    """Whether the slope is above zero over tasks, and larger than those of enough controls of every kind."""
    return slope.low > 0 and all(len(each.slopes) >= CONTROLS_NEEDED and each.p_value <= 0.05 for each in controls)


def _push(grid: ConceptGrid) -> Finding:
    slope, controls = grid.slope(), [grid.controls(kind) for kind in KINDS]
    one, other = grid.concept
    if not grid.doses:
        sentence = "No dose leaves the model coherent, so nothing is claimed about what a push does to ratings."
        return Finding("Push", sentence, "concept_doses")
    cells = grid.cell_slopes()["slope"]
    sentence = (
        f"A push from {other} towards {one} on every token while doing is rated moves the rating by {plain(slope, 3)} scale "
        f"lengths per dose, averaged over the {len(cells)} cells (n={slope.n} tasks, coherent from {min(grid.doses):+.3g} to "
        f"{max(grid.doses):+.3g}), from {cells.min():+.3f} to {cells.max():+.3f} in single ones."
        + null_note(slope, "effect", digits=3)
    )
    return Finding("Push", f"{sentence} {_beside(grid, controls)} {_verdict(slope, controls)}", "concept_doses", _rows(grid))


def _beside(grid: ConceptGrid, controls: list[Controls]) -> str:
    largest = grid.largest_dose
    tested = controls[0].tested
    if not np.isfinite(tested):
        return f"At the doses {-largest:+.3g} and {largest:+.3g}, where controls were asked, the model is not coherent."
    ranges = " and ".join(
        f"{len(each.slopes)} {_MADE[each.kind]} give {each.slopes.min():+.3f} to {each.slopes.max():+.3f} "
        f"(p = {each.p_value:.2f})"
        for each in controls
        if len(each.slopes)
    )
    return (
        f"From the doses {-largest:+.3g} and {largest:+.3g} alone it is {tested:+.3f} in the cells that controls were asked "
        f"in; {ranges}."
    )


def _verdict(slope: Estimate, controls: list[Controls]) -> str:
    if not np.isfinite(controls[0].tested):
        return "So nothing is claimed about exceeding them."
    if any(len(each.slopes) < CONTROLS_NEEDED for each in controls):
        return f"With fewer than {CONTROLS_NEEDED} controls of a kind nothing is claimed about exceeding them."
    if exceeds_controls(slope, controls):
        return "The effect exceeds its controls of both kinds."
    # To stand out, a slope has to pass the largest control, and to do so four times in five by .84 standard errors.
    needed = max(float(np.abs(each.slopes).max()) for each in controls) + (POWER_FACTOR - 1.96) * slope.se
    return (
        "It is not shown to exceed its controls; the smallest slope that would have stood out four times in five is "
        f"{needed:.3f}."
    )


def _prompts(grid: ConceptGrid, worth: Estimate | None) -> Finding:
    one, other = grid.concept
    effects = grid.effects()
    rated, done = (effects[f"rating, {role} under {one} less {other}"] for role in ("rated", "done"))
    sentence = (
        f"Being rated under {one} instead of {other} moves the rating of the same doing by {plain(rated, 3)} of a scale's "
        f"length.{null_note(rated, 'effect of context', digits=3)} Having been done under {one} instead of {other} moves it by "
        f"{plain(done, 3)}.{null_note(done, 'effect of persona', digits=3)} "
    )
    if worth is None:
        sentence += "How many doses the context is worth is not defined, as the interval of the slope contains zero."
    else:
        sentence += f"The context is worth {plain(worth)} doses of the push (ratio, bootstrap over tasks)."
    return Finding("System prompts", sentence, "concept_effects")


def _interaction(grid: ConceptGrid) -> Finding:
    one, other = grid.concept
    effects = grid.effects()
    rated, done = (effects[f"slope, {role} under {one} less {other}"] for role in ("rated", "done"))
    return Finding(
        "Does it depend",
        f"Rated under {one} instead of {other}, the slope differs by {plain(rated, 3)} scale lengths per "
        f"dose.{null_note(rated, 'dependence on context', digits=3)} For tasks done under {one} instead of {other} it differs "
        f"by {plain(done, 3)}.{null_note(done, 'dependence on persona', digits=3)}",
        "concept_slopes",
    )


def _coherence(grid: ConceptGrid) -> Finding:
    curve = grid.response.curve.set_index("dose").sort_index()
    off = ", ".join(f"{100 * (1 - mass):.0f} % at {dose:+.3g}" for dose, mass in curve["mass"].items())
    reach = _reach(curve.index[curve["coherent"]].tolist(), curve.index.tolist())
    sentence = f"Probability that falls off the scale: {off}. The model is coherent {reach}"
    if "log_likelihood" not in curve:
        return Finding("Coherence", f"{sentence}, going by format alone, as no free texts were asked for.", "concept_coherence")
    return Finding(
        "Coherence",
        f"{sentence}: at least 90 % as many answers on format as at dose 0, and free texts at most {MAX_DROP:g} nat a token "
        f"less probable to the untouched model than its own, and at most {MAX_REPETITION:g} more repetitive.",
        "concept_coherence",
    )


def _reach(coherent: list[float], asked: list[float]) -> str:
    return "at every dose" if len(coherent) == len(asked) else f"from {min(coherent):+.3g} to {max(coherent):+.3g}"


def _rows(grid: ConceptGrid) -> tuple[str, ...]:
    """The slope of every cell, a row a persona and a column a context."""
    table = grid.cell_slopes().pivot(index="done_under", columns="rated_under", values="slope")
    wide = max(8, *(len(name) + 2 for name in grid.prompts))
    lines = [("slope, done under / rated under", grid.prompts)]
    lines += [(name, [f"{table.at[name, column]:+.3f}" for column in grid.prompts]) for name in grid.prompts]
    return tuple(name.ljust(33) + "".join(str(cell).rjust(wide) for cell in cells) for name, cells in lines)
