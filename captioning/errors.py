"""What a user is told when something is wrong, and how a tool ends. Knows nothing of captioning."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

STOPPED = 2
"""Exit code of a tool that refused its input."""


class UserError(Exception):
    """One sentence that names the file, the value and the next step. Tools print it and exit with 2."""


class Stopped(Exception):
    """Work that was ended from outside, with all that is needed to go on; the tool exits with `code`."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's `main` and leave the process with its exit code.

    `UserError` becomes one line on stderr and exit code 2; any other exception becomes one line and exit
    code 1. With `--debug` on the command line the traceback is shown as well.
    """
    debug = "--debug" in sys.argv[1:]
    try:
        code = main() or 0
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our stdout (head, less) has seen enough
        sys.stderr.close()
        code = 0
    except Stopped as stop:
        print(stop, file=sys.stderr)
        code = stop.code
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = STOPPED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        code = 1
    sys.exit(code)
