"""One adaptive method per file."""

from . import presets as presets
from .adaptive_grid import AdaptiveGrid as AdaptiveGrid
from .agent.policy import Agent as Agent
from .budget import Budget as Budget
from .cascade import Cascade as Cascade
from .domains.policy import ByDomain as ByDomain
from .early_stop import EarlyStop as EarlyStop
from .error_control import ErrorControl as ErrorControl
from .fixed import Fixed as Fixed
from .forecast import ForecastKind as ForecastKind
from .guidance_gate import GuidanceGate as GuidanceGate
from .interval import Interval as Interval
from .mask import Mask as Mask
from .path import Path as Path
from .pid import PID as PID
from .random_skip import RandomSkip as RandomSkip
from .refine import RefineOnce as RefineOnce
from .sada import Sada as Sada
from .stride import Stride as Stride
from .student import Student as Student
from .third_order import ThirdOrder as ThirdOrder
from .third_order import ThirdOrderReleased as ThirdOrderReleased
from .zeus import Zeus as Zeus
