"""Runs commands in processes of their own. A server imports torch once and forks for each command."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# The server imports the package and forks for each request, so a command starts in milliseconds and still has its own
# descriptors, working directory and exit code. `os._exit` skips the interpreter's shutdown, which would touch, and
# so copy, every imported page.
SERVER = """
import gc, json, os, sys
requests, answers = os.fdopen(int(sys.argv[1])), int(sys.argv[2])
import captioning.captioner.predict, captioning.experiment, captioning.inspection.attention_figure
from captioning.cli.main import main
gc.freeze()
for line in requests:
    command, arguments, folder, files = json.loads(line)
    child = os.fork()
    if child:
        os.write(answers, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    for number, name in enumerate(files):
        os.dup2(os.open(name, os.O_WRONLY if number else os.O_RDONLY), number)
    os.chdir(folder)
    try:
        main([command, *arguments])
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(99)
os._exit(0)
"""


class Done(NamedTuple):
    """Exit code and output of a finished process."""

    code: int
    out: str
    err: str


def tool(name: str, *arguments: str | os.PathLike[str], stdin: bytes = b"", cwd: Path = ROOT) -> Done:
    """Run `captioning NAME ARGUMENTS` in the folder `cwd`."""
    requests, answers = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        for file, content in zip(files, (stdin, b"", b""), strict=True):
            file.write_bytes(content)
        texts = [os.fspath(argument) for argument in arguments]
        request = [name, texts, str(cwd), [str(file) for file in files]]
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        code = int(answers.readline())
        return Done(code, *(file.read_text(encoding="utf-8") for file in files[1:]))


def python(code: str, *arguments: str) -> Done:
    """Run a few lines of Python in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, cwd=ROOT)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@functools.cache
def _server():
    to_server, from_server = os.pipe(), os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(to_server[0]), str(from_server[1])],
        pass_fds=(to_server[0], from_server[1]),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    os.close(to_server[0])
    os.close(from_server[1])
    requests = os.fdopen(to_server[1], "w")
    atexit.register(process.wait)
    atexit.register(requests.close)  # called first, and ends the process
    return requests, os.fdopen(from_server[0])
