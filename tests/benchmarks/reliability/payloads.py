"""R7: no loader runs code that is in a file, and every checkpoint is read by plain torch.load."""

import io
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from runs import Case, begin, make
from shared import VARIANTS, child, told, tried

from onecycle import Checkpoint

WAYS = {
    "load": lambda learn, path: learn.load(path),
    "load, model alone": lambda learn, path: learn.load(path, with_opt=False),
    "resume": lambda learn, path: learn.resume(path),
    "Checkpoint": lambda learn, path: learn.fit(1, callbacks=[Checkpoint(path, resume=True)]),
}


def measure(options):
    """Give files with code in them to every loader; read every checkpoint by torch.load."""
    return all([poisoned(), readable()])


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def poisoned():
    """Load every payload in every way."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        child(begin, Case(), folder, {}, (3, signal.SIGINT))
        contents = payloads(folder / "marker", torch.load(folder / "run.pt", weights_only=True))
        found = {
            f"{way} of {what}": refusal(way, content, folder)
            for way in WAYS
            for what, content in contents.items()
        }
    return tried("R7", "code in files: {} of {} refused, none run", found)


def payloads(marker, good):
    """Files that run code where they are loaded without care; `good` is a checkpoint's content."""
    payload = Payload(marker)
    made = {f"pickle {p}": pickle.dumps(payload, protocol=p) for p in (0, 2, 5)}
    made["zip"] = saved(payload)
    made["the model"] = saved({**good, "model": {**good["model"], "0.weight": payload}})
    made["the run"] = saved({**good, "run": {**good["run"], "callbacks": payload}})
    return {**made, "legacy": saved(payload, _use_new_zipfile_serialization=False)}


def saved(content, **options):
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def refusal(way, content, folder):
    """What happened to a file that was to be refused; nothing if it was."""
    learn, path, marker = make(Case()), folder / "payload.pt", folder / "marker"
    path.write_bytes(content)
    answer = ["it was accepted"]
    try:
        WAYS[way](learn, path)
    except ValueError:
        answer = []
    except Exception as error:  # noqa: BLE001 - the wrong one, and that is told
        answer = [f"raised {error!r}"]
    if marker.exists():
        marker.rmdir()
        answer.append("it was run")
    return answer


def readable():
    """Write a file in the middle of a run, one at its end, and a model, of every variant."""
    with TemporaryDirectory() as name:
        paths = []
        for i, case in enumerate(VARIANTS.values()):
            for what, kill in (("middle", (12, signal.SIGINT)), ("end", None)):
                folder = Path(name, f"{i} {what}")
                folder.mkdir()
                child(begin, case, folder, {}, kill)
                paths.append(folder / "run.pt")
            paths.append(make(case).save(Path(name, f"{i}.pt")))
        code = "import sys, torch; [torch.load(p, weights_only=True) for p in sys.argv[1:]]"
        read = subprocess.run([sys.executable, "-W", "error", "-c", code, *paths], check=False)
    text = f"torch.load(weights_only=True) alone reads {len(paths)} files of all kinds of runs"
    return told("R7", text, met=read.returncode == 0)
