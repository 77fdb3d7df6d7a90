"""Bounds on the size of what one run may be asked for."""

MAX_SIDE = 16_384  # pixels of a side of a picture
MAX_FRAMES = 10_000  # of a video
