"""Few-step students: progressive and consistency distillation of diffusion pipelines."""
