"""What a run will cost, before it is paid for: memory, time, which term limits, and what was said against what was true."""

from diptych.plan.estimate import Estimate, StagePlan, plan_recipe
from diptych.plan.machines import Machine, elsewhere, parse_machine

__all__ = ["Estimate", "Machine", "StagePlan", "elsewhere", "parse_machine", "plan_recipe"]
