"""A zoo of small denoisers that differ where solvers differ; see README.md."""
