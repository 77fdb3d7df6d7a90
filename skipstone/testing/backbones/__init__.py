"""Denoisers: exact ones for proofs, adapters for real ones."""

from .gaussian import Gaussian as Gaussian
from .mixture import Mixture as Mixture
