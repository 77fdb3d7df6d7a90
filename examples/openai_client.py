"""A picture from `skipstone serve`, with OpenAI's own client: python examples/openai_client.py [ADDRESS] [PROMPT]"""

import base64
import sys
from pathlib import Path

from openai import APIConnectionError, OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
prompt = sys.argv[2] if len(sys.argv) > 2 else "a red apple on a blue background"
client = OpenAI(base_url=f"{address}/v1", api_key="needed only where the server has keys")

try:
    answer = client.images.generate(prompt=prompt, quality="medium", extra_body={"seed": 3})
except APIConnectionError:
    sys.exit(f"No server at {address}. Start one: skipstone serve")
picture = answer.data[0]
Path("served.png").write_bytes(base64.b64decode(picture.b64_json))
print(f"served.png: {picture.calls:g} of {picture.full_calls:g} calls, by {picture.policy}")
print(f"certificate {picture.certificate}: {picture.promise}")
