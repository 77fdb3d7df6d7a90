"""x(t) -> x(t_next), one method per file."""

from .ddim import DDIM as DDIM
