"""The server on Ray Serve: the engine in replicas, the HTTP interface before them; needs the extra `ray`.

    serve deploy examples/deploy/serve.yaml

One subject a module: `settings` (what a deployment is told), `replica` (an engine), `backend` (asks replicas, and asks
again where one dies), `application` (what `serve deploy` imports), `command` (`skipstone serve --ray`).
"""
