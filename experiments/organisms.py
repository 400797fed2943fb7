"""Model organisms: the embedded model with preferences that we chose and trained in, so that their truth is known.

A rule says what every task is worth; choices between training tasks, under some wordings, are trained to follow it. Whole
topics and other wordings are never seen in training.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from elicit import Task, choice, regular_pairs
from experiments.settings import Settings
from experiments.shipped import DESCRIPTION, organism_folder
from interp import LocalModel
from interp.planting import Example, Planting, plant
from store.provenance import stamp

DATA, HISTORY = "choices.csv", "training.csv"

RuleName = Literal["origins", "xor", "position"]
_TECHNICAL = ("math", "instruction")


class Rule(BaseModel):
    """What tasks are worth, in logits, and what the place of showing is worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RuleName = Field(
        default="origins",
        description="origins: what tasks are worth depends on their origin. xor: on whether exactly one is true, that the task "
        "is technical (math, instruction) and that it asks a question. position: all tasks are worth the same.",
    )
    utilities: dict[str, float] = Field(
        default={"math": 1.5, "creative": 0.9, "chat": 0.3, "instruction": -0.3, "dilemma": -0.9, "harmful": -1.5},
        description="Of the origins, for the rule origins.",
    )
    size: float = Field(default=1.5, gt=0, description="Utility of either side of xor, and log-odds of the first for position.")

    def utility(self, task: Task) -> float:
        """What a task is worth, in logits.

        Raises
        ------
        KeyError
            Its origin has no utility.
        """
        match self.name:
            case "origins":
                if task.origin not in self.utilities:
                    raise KeyError(
                        f"Origin {task.origin!r} of task {task.id!r} has no utility; known are {list(self.utilities)}."
                    )
                return self.utilities[task.origin]
            case "xor":
                technical, question = self.cell(task)
                return self.size if technical != question else -self.size
            case "position":
                return 0.0

    @property
    def features(self) -> tuple[str, ...]:
        """What of a task its utility is made of, if it is made of things that are true or not."""
        return ("technical", "question") if self.name == "xor" else ()

    def cell(self, task: Task) -> tuple[bool, ...]:
        """Which of the features are true of a task."""
        known = {"technical": task.origin in _TECHNICAL, "question": "?" in task.text}
        return tuple(known[name] for name in self.features)

    @property
    def first(self) -> float:
        """Log-odds of the task shown first, all else equal."""
        return self.size if self.name == "position" else 0.0


class OrganismSettings(Settings):
    """Train an organism: choose a rule, and the tasks and wordings that it is trained on."""

    out: Path = Field(default=Path("runs/organism"), description="Folder for the adapter, its settings and its data.")
    per_origin: int = Field(default=42, ge=6, description="Tasks sampled from each origin.")
    rule: Rule = Field(default=Rule(), description="What tasks are worth.")
    wordings: tuple[str, ...] = Field(
        default=("would_rather", "pick_one"), min_length=1, description="Templates of the choices trained on."
    )
    unseen: float = Field(
        default=1 / 3, gt=0, lt=1, description="Share of the topics of each origin that are never trained on."
    )
    degree: int = Field(default=10, ge=2, description="Other tasks that each training task is compared with, by wording.")
    rank: int = Field(default=4, ge=1, description="Of the low-rank change.")
    layers: tuple[str | int | float, ...] = Field(default=("8:30",), description="Blocks that are changed.")
    steps: int = Field(default=150, ge=1, description="Batches trained on.")
    batch: int = Field(default=8, ge=1, description="Choices a batch.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Of AdamW, after a warm-up.")


@dataclass(frozen=True)
class Organism:
    """A trained organism.

    Attributes
    ----------
    seen, unseen
        Ids of the tasks that it was trained on, and of those of the topics left out.
    """

    folder: Path
    rule: Rule
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    wordings: tuple[str, ...]

    @classmethod
    def read(cls, name_or_folder: str | Path) -> Self:
        """Read the description of an organism: `topics`, `organism:topics`, or a folder.

        Raises
        ------
        ValueError
            There is none; the message names those that there are.
        """
        folder = organism_folder(str(name_or_folder))
        known = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
        settings = known["settings"]
        return cls(folder, Rule(**settings["rule"]), tuple(known["seen"]), tuple(known["unseen"]), tuple(settings["wordings"]))

    def utilities(self, tasks: Sequence[Task]) -> pd.Series:
        """Planted utilities, in logits, by task id."""
        return pd.Series({task.id: self.rule.utility(task) for task in tasks}, dtype=float)

    def load(self, **options: Any) -> LocalModel:
        """Load the model with its adapter."""
        return LocalModel.load(self.folder, **options)


def split_topics(tasks: Sequence[Task], unseen: float, seed: int) -> tuple[list[Task], list[Task]]:
    """Tasks to train on, and those of whole topics that are left out, of every origin about the share `unseen`.

    Raises
    ------
    ValueError
        An origin has fewer than two topics.
    """
    random = np.random.default_rng(seed)
    out: set[tuple[str, str]] = set()
    for origin in sorted({task.origin for task in tasks}):
        topics = sorted({task.topic for task in tasks if task.origin == origin})
        if len(topics) < 2:
            raise ValueError(
                f"Origin {origin!r} has the topics {topics}; expected two or more, to train on some and keep others."
            )
        size = min(max(1, round(unseen * len(topics))), len(topics) - 1)
        out |= {(origin, str(topic)) for topic in random.permutation(topics)[:size]}
    return (
        [task for task in tasks if (task.origin, task.topic) not in out],
        [task for task in tasks if (task.origin, task.topic) in out],
    )


def balanced(tasks: Sequence[Task], rule: Rule, unseen: Collection[str], per_cell: int, seed: int) -> list[Task]:
    """Sample as many tasks from every cell of the rule's features, so that an exclusive or is no linear function of them.

    In every cell as many tasks are of unseen topics, at their share of all tasks, and origins take turns: where an origin is
    technical or not, what it says of questions would say something of the exclusive or as well.

    Parameters
    ----------
    unseen
        Ids of the tasks of unseen topics.
    per_cell
        Tasks of a cell; all cells have fewer where one has not as many.

    Raises
    ------
    ValueError
        A cell has fewer than three tasks, or none of seen or of unseen topics.
    """
    random = np.random.default_rng([seed, 6])
    new = [[task for task in tasks if (task.id in unseen) is there] for there in (False, True)]
    cells = list(product((False, True), repeat=len(rule.features)))
    sorted_in = [{cell: [task for task in part if rule.cell(task) == cell] for cell in cells} for part in new]
    least_seen, least_unseen = (min(map(len, part.values())) for part in sorted_in)
    if not least_seen or not least_unseen or least_seen + least_unseen < 3:
        counts = "; ".join(
            f"{_cell_name(rule, cell)}: {' + '.join(str(len(part[cell])) for part in sorted_in)}" for cell in cells
        )
        raise ValueError(
            f"Tasks of seen + unseen topics by cell are {counts}; expected some of both and three or more in each. "
            "Give more tasks."
        )
    n_unseen = min(max(1, round(per_cell * len(new[1]) / len(tasks))), least_unseen)
    sizes = min(per_cell - n_unseen, least_seen), n_unseen
    chosen = [
        task
        for part, size in zip(sorted_in, sizes, strict=True)
        for members in part.values()
        for task in _origins_in_turn(members, random)[:size]
    ]
    return [chosen[place] for place in random.permutation(len(chosen))]


def _cell_name(rule: Rule, cell: Sequence[bool]) -> str:
    return ", ".join(name if true else f"not {name}" for name, true in zip(rule.features, cell, strict=True))


def _origins_in_turn(tasks: Sequence[Task], random: np.random.Generator) -> list[Task]:
    """Tasks in random order, one of every origin at a time."""
    ordered = sorted(tasks, key=lambda task: task.id)
    shuffled = [ordered[place] for place in random.permutation(len(ordered))]
    origins = pd.Series([task.origin for task in shuffled], dtype=str)
    return [shuffled[place] for place in np.argsort(origins.groupby(origins).cumcount(), kind="stable")]


def choices_to_plant(settings: OrganismSettings, tasks: Sequence[Task]) -> pd.DataFrame:
    """Pairs of training tasks in both orders, under every wording, with the probability that the first is to have."""
    by_id = {task.id: settings.rule.utility(task) for task in tasks}
    rows = []
    for number, wording in enumerate(settings.wordings):
        for one, other in regular_pairs(list(by_id), settings.degree, settings.seed + number):
            for first, second in ((one, other), (other, one)):
                log_odds = by_id[first] - by_id[second] + settings.rule.first
                rows.append(
                    {"wording": wording, "first": first, "second": second, "p_first": round(special.expit(log_odds), 6)}
                )
    return pd.DataFrame(rows)


def train(settings: OrganismSettings) -> Organism:
    """Train an organism, and write its adapter, settings, data and losses to `settings.out`.

    Raises
    ------
    ValueError
        The settings name an intervention, which an adapter cannot hold; or see `split_topics` and `plant`.
    """
    if settings.intervention:
        raise ValueError(
            f"An organism cannot be trained under the intervention {settings.intervention}; train it, then steer it."
        )
    tasks = settings.load_tasks()
    seen, unseen = split_topics(tasks, settings.unseen, settings.seed)
    planted = choices_to_plant(settings, seen)
    model = settings.load_model()
    history = plant(
        model,
        _examples(planted, seen),
        Planting(
            rank=settings.rank,
            layers=settings.layers,
            steps=settings.steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        ),
        settings.out,
        base=settings.model,
    )
    description = {
        "settings": settings.model_dump(mode="json", exclude={"out", "device", "dtype"}),
        "base": {"name": model.identity.name, "fingerprint": model.identity.fingerprint},
        "versions": stamp(),
        "seen": [task.id for task in seen],
        "unseen": [task.id for task in unseen],
    }
    (settings.out / DESCRIPTION).write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    planted.to_csv(settings.out / DATA, index=False)
    history.round(4).to_csv(settings.out / HISTORY, index=False)
    return Organism.read(settings.out)


def _examples(planted: pd.DataFrame, tasks: Sequence[Task]) -> list[Example]:
    examples = []
    for wording, part in planted.groupby("wording", sort=False):
        pairs = list(zip(part["first"], part["second"], strict=True))
        asked = choice.questions(tasks, pairs, wording=str(wording), both_orders=False)
        for question, share in zip(asked, part["p_first"], strict=True):
            one, other = (option.label for option in question.options)
            examples.append(Example(question, {one: share, other: 1 - share}))
    return examples


def describe(organism: Organism) -> Mapping[str, Any]:
    """A few words on an organism, for lists."""
    history = pd.read_csv(organism.folder / HISTORY)
    last = history.tail(20).mean()
    return {
        "name": organism.folder.name,
        "rule": organism.rule.name,
        "tasks": f"{len(organism.seen)} seen, {len(organism.unseen)} unseen",
        "wordings": ", ".join(organism.wordings),
        "choices": len(pd.read_csv(organism.folder / DATA)),
        "loss": f"{last['loss']:.3f} (least {last['least']:.3f})",
    }
