"""Other people's accelerators, run as themselves in the same bench."""

from skipstone.evaluation.peer_harness import SavingsCounter as SavingsCounter
from skipstone.evaluation.peers import Peer as Peer

from .attention import FasterCache as FasterCache
from .attention import PyramidAttention as PyramidAttention
from .attention import TaylorSeer as TaylorSeer
from .blocks import FirstBlockCache as FirstBlockCache
from .blocks import MagCache as MagCache
from .cachedit import DBCache as DBCache
from .deepcache import DeepCache as DeepCache
from .distilled import LCMLoRA as LCMLoRA
from .distilled import OtherScheduler as OtherScheduler
from .distilled import SDXLTurbo as SDXLTurbo
from .published import AttendAndExcite as AttendAndExcite
from .published import SelfAttentionGuidance as SelfAttentionGuidance
