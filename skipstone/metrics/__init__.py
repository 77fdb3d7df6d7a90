"""Metrics of the quality and the cost of a finished sample, or of a row of them."""

from .available import AvailableMetrics as AvailableMetrics
from .available import metrics_available as metrics_available
from .base import Metric as Metric
from .base import Sample as Sample
from .base import SetMetric as SetMetric
from .closeness import PSNR as PSNR
from .closeness import SSIM as SSIM
from .cost import Cost as Cost
from .frames import Flicker as Flicker
from .frames import FramePSNR as FramePSNR
from .frames import FrameSSIM as FrameSSIM
from .frames import WorstFramePSNR as WorstFramePSNR
from .frames import WorstFrameSSIM as WorstFrameSSIM
from .judge_score import JudgeScore as JudgeScore
from .latents import LatentError as LatentError
from .lpips import LPIPS as LPIPS
from .sets import FID as FID
from .sets import FVD as FVD
from .sets import KID as KID
from .sets import ClipScore as ClipScore
