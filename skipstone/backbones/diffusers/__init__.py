"""A guest in any diffusers pipeline: `skipstone.adapt(pipe, policy)`."""
