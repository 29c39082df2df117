"""The command line. ``defender run`` is the container's entry point; all else is for people.

`main` looks at the first word before it imports anything: ``run`` must claim its ID within half a second
and goes straight to the supervisor, without typer, rich or aiohttp.

Exit codes: 0 done, 1 done but something was wrong on the way (bad lines), 2 wrong usage, 130 interrupted;
an error has its own (`DefenderError.exit_code`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from runtime.errors import DefenderError

INTERRUPTED = 130


def main() -> int:
    """Runs the command of ``sys.argv``; returns its exit code. Errors are one line, never a stack trace."""
    argv = sys.argv[1:]
    if argv[:1] == ["run"] and not {"--help", "-h"} & set(argv):
        from runtime.supervisor import main as run

        return guarded(lambda: run(argv[1:]))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: more are slower
    from runtime.cli.app import execute

    obey_interrupts()
    return guarded(lambda: execute(argv))


def obey_interrupts() -> None:
    """SIGINT ends a command however it was started, as it ends ``defender run``.

    What a shell without job control starts with ``&`` (a script, a CI job) begins with SIGINT ignored, and
    Python leaves it so: a follower never ended, and a demo ran to its end and left with 0.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def guarded(command: Callable[[], int]) -> int:
    """The exit code of *command*; what a person did wrong is told on stderr."""
    try:
        return command()
    except DefenderError as error:
        complain("\n".join([str(error), *getattr(error, "__notes__", [])]))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (head, less): not an error; nothing more may be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def complain(problem: str) -> None:
    """One line (or one a problem, where there are several) on stderr, in red on a terminal."""
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    for line in problem.splitlines():
        text = f"defender: {line}"
        print(f"\x1b[31m{text}\x1b[0m" if coloured else text, file=sys.stderr)
