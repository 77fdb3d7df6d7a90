"""A guest in any diffusers pipeline: `skipstone.adapt(pipe, policy)`."""

from . import pipeline_catalogue as pipeline_catalogue  # declares the pipelines of diffusers
