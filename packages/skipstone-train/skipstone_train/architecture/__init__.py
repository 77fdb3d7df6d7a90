"""Architecture search: smaller networks that inherit a model's weights and learn from its outputs."""
