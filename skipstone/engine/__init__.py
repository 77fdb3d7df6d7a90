"""The denoising loop, written once, and what crosses its boundaries."""
