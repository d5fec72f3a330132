"""`samples.jsonl`: what the model wrote at each validation."""

from __future__ import annotations

import json

from eggroll.runs.folder import RunFolder, writing


def append_sample(folder: RunFolder, generation: int, text: str) -> None:
    """Note a sample after so many generations; a resumed run may note one twice.

    Raises:
      RunError: it cannot be written.
    """
    path = folder.path / "samples.jsonl"
    with writing(path), path.open("ab") as file:
        file.write((json.dumps({"generation": generation, "text": text}) + "\n").encode())
