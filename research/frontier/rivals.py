"""The fixed samplers that a default is held against, and the terms; written down before the first run.

For each network and number of calls the rival is the best of all `SAMPLERS`, once at the median and once in p10,
chosen on the very samples on which the default is measured, with the default's mean number of calls, rounded up.
"""

from __future__ import annotations

SOLVERS = ("unipc", "dpmpp", "adams", "adams(of='x0')", "ddim")
GRIDS = ("trailing", "uniform", "karras", "logsnr", "asinh")
SAMPLERS = tuple((solver, grid) for solver in SOLVERS for grid in GRIDS)

MEAN_CALLS = (6, 8, 10, 15, 20)  # of the table; the bars are at 8, 10, 15 and 20
BAR_CALLS = (8, 10, 15, 20)
SAMPLES, CLIPS = 64, 16  # samples a network, clips of a video network
MEDIAN_LEAD, TAIL_LEAD = 1.0, 2.0  # dB by which the default should lead, at the median and in p10
SHARE, WORST = 0.75, -1.0  # of network x calls where it should; nowhere may it be further behind than this, in dB
