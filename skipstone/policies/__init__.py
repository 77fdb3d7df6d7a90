"""One adaptive method per file."""

from .fixed import Fixed as Fixed
from .third_order import ThirdOrder as ThirdOrder
