"""Other people's accelerators, run as themselves in the same bench."""

from .attention import FasterCache as FasterCache
from .attention import PyramidAttention as PyramidAttention
from .attention import TaylorSeer as TaylorSeer
from .base import Peer as Peer
from .blocks import FirstBlockCache as FirstBlockCache
from .blocks import MagCache as MagCache
from .cachedit import DBCache as DBCache
from .deepcache import DeepCache as DeepCache
from .distilled import LCMLoRA as LCMLoRA
from .distilled import Scheduler as Scheduler
from .distilled import SDXLTurbo as SDXLTurbo
from .harness import Engagement as Engagement
from .published import AttendAndExcite as AttendAndExcite
from .published import SelfAttentionGuidance as SelfAttentionGuidance
