"""What could be had if the right choice were known beforehand: bounds for policies, never policies themselves."""

from .best_of import BestOf as BestOf
from .best_of import best_of as best_of
from .best_of import scorer as scorer
from .schedule import Ladder as Ladder
from .schedule import Oracle as Oracle
from .schedule import oracle_schedule as oracle_schedule
from .stop import Ending as Ending
from .stop import Peak as Peak
from .stop import oracle_ending as oracle_ending
from .stop import oracle_stop as oracle_stop
from .utility import Choice as Choice
from .utility import Tried as Tried
from .utility import Utility as Utility
