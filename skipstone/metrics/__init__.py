"""What a finished sample is worth and what it cost, as numbers."""

from .base import Metric as Metric
from .base import Sample as Sample
from .closeness import PSNR as PSNR
from .closeness import SSIM as SSIM
from .cost import Cost as Cost
from .judged import JudgeScore as JudgeScore
