"""The request that the project began with, byte for byte."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import httpx

from e2e_clients import TIMEOUT

NAME = "mistralai/Mistral-7B-Instruct-v0.2"
COMMAND = """curl --location 'http://staticIP:8000/v1/chat/completions' \\
--header 'Content-Type: application/json' \\
--data '{
  "model": "mistralai/Mistral-7B-Instruct-v0.2",
  "messages": [
    {
      "role": "user",
      "content": "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "
    }
  ],
  "temperature": 0.7,
  "top_p": 1,
  "max_tokens": 512,
  "stream": false,
  "safe_prompt": false,
  "random_seed": 1337
}'
"""
BODY = COMMAND.partition("--data '")[2].rpartition("'")[0]


def post(url: str, key: str = "") -> dict[str, Any]:
    """Run the gist's command; where there is no curl, send what it would send."""
    bearer = f"Bearer {key}"
    if shutil.which("curl"):
        command = COMMAND.replace("http://staticIP:8000", url)
        if key:
            command = command.replace("curl ", f"curl --header 'Authorization: {bearer}' ", 1)
        result = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, check=True, timeout=TIMEOUT
        )
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer
    headers = {"Content-Type": "application/json", "User-Agent": "curl/7.88.1", "Accept": "*/*"}
    if key:
        headers["Authorization"] = bearer
    response = httpx.post(
        f"{url}/v1/chat/completions",
        content=BODY.replace("\n", ""),
        headers=headers,
        timeout=TIMEOUT,
    )
    assert response.status_code == 200
    parsed: dict[str, Any] = response.json()
    return parsed
