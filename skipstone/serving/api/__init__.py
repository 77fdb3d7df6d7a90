"""The HTTP interface of an engine: OpenAI's images endpoints, health, metrics and a page; needs the extra `serve`."""
