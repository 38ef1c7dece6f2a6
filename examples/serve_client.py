"""A book is read once by a running `ltc serve`, and continued eight times from its state.

ltc serve demo
python examples/serve_client.py http://127.0.0.1:8080 book.txt
"""

import sys
from pathlib import Path

from openai import OpenAI


def main(url: str, path: str) -> None:
    """Read a file and print eight continuations."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    text = Path(path).read_text()
    read = client.completions.create(model=model, prompt=text, max_tokens=0, extra_body={"ltc": {"return_state": "id"}})
    state = (read.choices[0].model_extra or {})["ltc"]["state"]
    for seed in range(8):
        answer = client.completions.create(
            model=model, prompt="", max_tokens=80, seed=seed, temperature=0.8, extra_body={"ltc": {"state": state}}
        )
        print(f"--- seed {seed}\n{answer.choices[0].text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
