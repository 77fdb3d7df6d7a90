"""What could be had if the right choice were known beforehand: bounds for policies, never policies themselves."""

from skipstone.evaluation.utility import Utility as Utility

from .best_of import BestOf as BestOf
from .best_of import best_of as best_of
from .best_of import make_scorer as make_scorer
from .schedule import OracleSettings as OracleSettings
from .schedule import ScheduleOracle as ScheduleOracle
from .schedule import oracle_schedule as oracle_schedule
from .stopping import BestEnding as BestEnding
from .stopping import BestStop as BestStop
from .stopping import oracle_ending as oracle_ending
from .stopping import oracle_stop as oracle_stop
from .utility import ScheduleChoice as ScheduleChoice
from .utility import TrialResult as TrialResult
