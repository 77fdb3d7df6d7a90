"""Networks of diffusers and transformers on MLX, from the same folders: `loading.load_module(folder)`.

Arrays are NHWC at the border of every network. Parameters have the names of diffusers and transformers.
"""
