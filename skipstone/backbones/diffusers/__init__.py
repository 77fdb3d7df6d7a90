"""A guest in any diffusers pipeline: `skipstone.adapt(pipe, policy)`."""

from . import catalogue as catalogue  # declares the pipelines of diffusers
