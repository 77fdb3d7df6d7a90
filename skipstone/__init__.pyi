from skipstone_pebble.model import Pebble as Pebble
from skipstone_train.students.distill import distill as distill

from . import mlx as mlx
from .calibration.audit import AuditOptions as AuditOptions
from .calibration.audit import audit as audit
from .calibration.calibrate import calibrate as calibrate
from .calibration.procedure import CalibrationOptions as CalibrationOptions
from .engine.contracts import Attempt as Attempt
from .engine.contracts import Cached as Cached
from .engine.contracts import Draft as Draft
from .engine.contracts import Finish as Finish
from .engine.contracts import Forecast as Forecast
from .engine.contracts import Full as Full
from .engine.contracts import Plan as Plan
from .engine.contracts import Policy as Policy
from .engine.contracts import Refine as Refine
from .engine.contracts import Run as Run
from .engine.drivers import denoise as denoise
from .engine.drivers import denoise_many as denoise_many
from .engine.drivers import replay as replay
from .engine.greedy import greedy_path as greedy_path
from .engine.requests import Backbone as Backbone
from .engine.requests import Estimate as Estimate
from .engine.requests import Problem as Problem
from .engine.requests import Query as Query
from .engine.requests import Result as Result
from .engine.requests import Solver as Solver
from .engine.trace import cite as cite
from .engine.trace import explain as explain
from .errors import SkipstoneError as SkipstoneError
from .integrations.diffusers.guest import Adapted as Adapted
from .integrations.diffusers.guest import adapt as adapt
from .integrations.diffusers.scheduler import Scheduler as Scheduler
from .integrations.identity import load_policy as load_policy
from .policies.certified import Certified as Certified
from .policies.hub import push_to_hub as push_to_hub
from .policies.storage import save_policy as save_policy
from .registry import names as names
from .registry import parse as parse
from .registry import register as register
from .registry import spell as spell

__version__: str

def policy(spec: str) -> Policy: ...
def solver(spec: str) -> Solver: ...
