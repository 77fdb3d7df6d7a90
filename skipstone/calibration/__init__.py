"""Say the quality, get the speed: the fastest setting of a policy that provably meets a target.

`skipstone.calibrate(pipe, prompts, "psnr >= 30 @ 90%")` does it; here is what it is made of.
"""

from .control import SettingChoice as SettingChoice
from .control import choose_setting as choose_setting
from .planning import PromptsNeeded as PromptsNeeded
from .planning import check_enough_prompts as check_enough_prompts
from .planning import prompts_needed as prompts_needed
from .risk import p_value as p_value
from .risk import p_value_by_group as p_value_by_group
from .risk import risk_interval as risk_interval
from .sequential import AuditResult as AuditResult
from .sequential import Watchdog as Watchdog
from .target import MetricFacts as MetricFacts
from .target import Target as Target
