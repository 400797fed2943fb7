"""Can the measurement be trusted? Plain functions from tables to small results, each with a `table` and a `plot()`."""

from elicit.reliability.agreement import Agreement, TemplateAgreement, agreement, scale_agreement, template_agreement
from elicit.reliability.contexts import HigherThanNeutral, higher_than_neutral
from elicit.reliability.cycles import CycleRate, HardCycles, hard_cycles
from elicit.reliability.distances import MantelTest, mantel_test
from elicit.reliability.dyads import dyadic_estimate
from elicit.reliability.held_out import HoldOut, hold_out_accuracy
from elicit.reliability.position import PositionBias, position_bias
from elicit.reliability.power import (
    PowerTable,
    needed_for_correlation,
    needed_for_preference,
    needed_for_shift,
    power_of_correlation,
    power_of_preference,
    power_of_shift,
    power_table,
    smallest_correlation,
    smallest_preference,
    smallest_shift,
)
from elicit.reliability.refusals import RefusalPreference, refusal_preference
from elicit.reliability.scales import (
    IntraclassCorrelation,
    ScaleUse,
    divergence,
    divergence_from_uniform,
    intraclass_correlation,
    scale_use,
)
from elicit.reliability.seeds import SeedAgreement, seed_agreement
from elicit.reliability.sensitivity import TemplateSensitivity, template_sensitivity
from elicit.reliability.task_consistency import ConsistencyAgreement, TaskConsistency, consistency_agreement, task_consistency

__all__ = [
    "Agreement",
    "ConsistencyAgreement",
    "CycleRate",
    "HardCycles",
    "HigherThanNeutral",
    "HoldOut",
    "IntraclassCorrelation",
    "MantelTest",
    "PositionBias",
    "PowerTable",
    "RefusalPreference",
    "ScaleUse",
    "SeedAgreement",
    "TaskConsistency",
    "TemplateAgreement",
    "TemplateSensitivity",
    "agreement",
    "consistency_agreement",
    "divergence",
    "divergence_from_uniform",
    "dyadic_estimate",
    "hard_cycles",
    "higher_than_neutral",
    "hold_out_accuracy",
    "intraclass_correlation",
    "mantel_test",
    "needed_for_correlation",
    "needed_for_preference",
    "needed_for_shift",
    "position_bias",
    "power_of_correlation",
    "power_of_preference",
    "power_of_shift",
    "power_table",
    "refusal_preference",
    "scale_agreement",
    "scale_use",
    "seed_agreement",
    "smallest_correlation",
    "smallest_preference",
    "smallest_shift",
    "task_consistency",
    "template_agreement",
    "template_sensitivity",
]
