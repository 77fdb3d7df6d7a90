"""Say the quality, get the speed: the fastest setting of a policy that provably meets a target.

`skipstone.calibrate(pipe, prompts, "psnr >= 30 @ 90%")` does it; here is what it is made of.
"""

from .control import Choice as Choice
from .control import choose as choose
from .planning import Needed as Needed
from .planning import enough as enough
from .planning import prompts_needed as prompts_needed
from .risk import by_group as by_group
from .risk import interval as interval
from .risk import p_value as p_value
from .sequential import Audit as Audit
from .sequential import Watchdog as Watchdog
from .target import Known as Known
from .target import Target as Target
