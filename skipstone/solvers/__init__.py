"""x(t) -> x(t_next), one method per file."""

from .adams import Adams as Adams
from .ddim import DDIM as DDIM
from .ddpm import DDPM as DDPM
from .dpm_adaptive import DPMAdaptive as DPMAdaptive
from .dpmpp import DPMpp as DPMpp
from .dpmpp_sde import DPMppSDE as DPMppSDE
from .euler import Euler as Euler
from .heun import Heun as Heun
from .kriging import Kriging as Kriging
from .unipc import UniPC as UniPC
