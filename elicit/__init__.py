"""What is asked, what the answers imply, and whether they can be trusted."""

from elicit.context import Context
from elicit.designs import all_pairs, disjoint_pairs, hold_out, regular_pairs
from elicit.modes import choice, rating
from elicit.pairs import order_averages
from elicit.reliability import agreement, hold_out_accuracy, position_bias
from elicit.respondent import Respondent
from elicit.runner import ask, ask_views
from elicit.tasks import Task, TaskError, builtin_tasks, load_tasks, sample_tasks, task_question
from elicit.templates import template, templates
from elicit.utilities import Utilities, fit_bradley_terry, fit_least_squares

__all__ = [
    "Context",
    "Respondent",
    "Task",
    "TaskError",
    "Utilities",
    "agreement",
    "all_pairs",
    "ask",
    "ask_views",
    "builtin_tasks",
    "choice",
    "disjoint_pairs",
    "fit_bradley_terry",
    "fit_least_squares",
    "hold_out",
    "hold_out_accuracy",
    "load_tasks",
    "order_averages",
    "position_bias",
    "rating",
    "regular_pairs",
    "sample_tasks",
    "task_question",
    "template",
    "templates",
]
