"""What is asked, what the answers imply, and whether they can be trusted."""

from elicit.balance import sample_templates
from elicit.context import Context
from elicit.designs import all_pairs, disjoint_pairs, hold_out, regular_pairs
from elicit.endpoint import Endpoint
from elicit.estimators import BradleyTerry, LeastSquares, Thurstone, ThurstoneSigmas
from elicit.follow_up import follow_up, reasoned, thought_first
from elicit.hub import load_hub_tasks
from elicit.judged import read_by_judge
from elicit.modes import bail, choice, choice_after, completion, completion_choice, judge, opt_out, ranking, rating, refusal
from elicit.pairs import order_averages
from elicit.rates import clustered_rate, rate
from elicit.reliability import PositionBias, agreement, hold_out_accuracy, position_bias
from elicit.respondent import Respondent
from elicit.runner import ask, ask_views
from elicit.tasks import (
    Task,
    TaskError,
    builtin_conversations,
    builtin_tasks,
    calibration_tasks,
    load_tasks,
    null_tasks,
    read_ids,
    sample_tasks,
    select_tasks,
    task_question,
)
from elicit.templates import template, templates
from elicit.utilities import Utilities

__all__ = [
    "BradleyTerry",
    "Context",
    "Endpoint",
    "LeastSquares",
    "PositionBias",
    "Respondent",
    "Task",
    "TaskError",
    "Thurstone",
    "ThurstoneSigmas",
    "Utilities",
    "agreement",
    "all_pairs",
    "ask",
    "ask_views",
    "bail",
    "builtin_conversations",
    "builtin_tasks",
    "calibration_tasks",
    "choice",
    "choice_after",
    "clustered_rate",
    "completion",
    "completion_choice",
    "disjoint_pairs",
    "follow_up",
    "hold_out",
    "hold_out_accuracy",
    "judge",
    "load_hub_tasks",
    "load_tasks",
    "null_tasks",
    "opt_out",
    "order_averages",
    "position_bias",
    "ranking",
    "rate",
    "rating",
    "read_by_judge",
    "read_ids",
    "reasoned",
    "refusal",
    "regular_pairs",
    "sample_tasks",
    "sample_templates",
    "select_tasks",
    "task_question",
    "template",
    "templates",
    "thought_first",
]
