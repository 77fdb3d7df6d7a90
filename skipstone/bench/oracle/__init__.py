"""What could be had if the right choice were known beforehand: bounds for policies, never policies themselves."""

from .schedule import Ladder as Ladder
from .schedule import Oracle as Oracle
from .schedule import oracle_schedule as oracle_schedule
from .utility import Choice as Choice
from .utility import Tried as Tried
from .utility import Utility as Utility
