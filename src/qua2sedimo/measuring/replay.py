"""Images of a pipeline folder, generated in a separate process.

    python -m qua2sedimo.measuring.replay FOLDER CALL.json IMAGES.safetensors

CALL.json holds a Generation and a range of images. The images depend on the folder's files and this call alone, which
shows that a packed checkpoint is self-contained.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json, write_json, write_via
from qua2sedimo.formats.temporary import temporary_folder
from qua2sedimo.images.generate import Generation, Generator


def replay(
    folder: Path, generation: Generation, images: range, scratch: Path, loading: Loading = Loading()
) -> tuple[np.ndarray, float]:  # fmt: skip
    """(float images of the pipeline in ``folder``, the seconds that making them took), by a new process, whose failure
    is raised.

    What both exchange is in a temporary folder in ``scratch``.
    """
    content = {**asdict(generation), "start": images.start, "stop": images.stop, "loading": asdict(loading)}
    with temporary_folder(scratch) as place:
        call, result = place / "call.json", place / "images.safetensors"
        write_json(call, content)
        command = [sys.executable, "-m", "qua2sedimo.measuring.replay", str(folder), str(call), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise Qua2SeDiMoError(f"{folder}: generating in a new process failed: {lines[-1]}")
        made = load_file(result)
        return made["images"], float(made["seconds"])


def main() -> None:
    folder, call, result = sys.argv[1:4]
    content = read_json(Path(call))
    images = range(content.pop("start"), content.pop("stop"))
    pipeline = load_pipeline(folder, Loading(**content.pop("loading")))
    began = time.perf_counter()
    made = Generator(pipeline, Generation(**content))(images.start, images.stop)
    found = {"images": np.ascontiguousarray(made), "seconds": np.array(time.perf_counter() - began)}
    write_via(Path(result), lambda path: save_file(found, path))


if __name__ == "__main__":
    main()
