"""The loop: draw, tune, calibrate, verify, register, deploy, audit, and again, as one file says."""
