"""Networks and pipelines of other libraries, as the engine's backbones and guests."""
