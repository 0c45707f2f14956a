"""Errors that end a command, one line each, and the advice in them."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 2000  # characters of a line
MOST_LISTED = 10  # names in one message; more would hide what is wrong
ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space, or write elsewhere.",
    errno.EDQUOT: "the disk quota is used up. Free some space, or write elsewhere.",
    errno.EMFILE: "too many files are open. Raise the limit (`ulimit -n`), or do less at a time.",
    errno.ENFILE: "too many files are open on this machine. Try again later.",
    errno.EROFS: "the file system is read-only. Write elsewhere.",
    errno.EACCES: "permission denied. Get the permission, or choose another folder.",
    errno.EPERM: "not permitted. Get the permission, or choose another folder.",
    errno.EPIPE: "the program that read the output has ended.",
    errno.ENAMETOOLONG: "the name is longer than the file system allows. Choose a shorter one.",
    errno.EIO: "the disk or its connection fails (input/output error). Choose another disk.",
}


class BadInput(ValueError):
    """Input that cannot work. Its text is one line that names the key or file, and states what to do."""


class Interrupted(RuntimeError):
    """A training was stopped: it has saved, and the next run resumes it."""


class StageFailed(RuntimeError):
    """A stage crashed. Its text is one line that names the stage; the cause is chained."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise errors of the machine (files, disk space, memory) and too deep nesting as BadInput, one line each."""
    try:
        yield
    except (Interrupted, StageFailed):  # have their message and exit code already
        raise
    except OSError as error:
        raise BadInput(_file_error(error)) from error
    except RecursionError as error:
        raise BadInput("the input is nested too deeply to be read. Use fewer levels.") from error
    except MemoryError as error:
        raise BadInput("not enough memory. Free some, or do less at a time.") from error
    except RuntimeError as error:  # torch has no class for lack of CPU memory, Python none for threads
        if "memory" in str(error) and ("alloc" in str(error) or "out of" in str(error)):
            raise BadInput("not enough memory. Free some, or do less at a time.") from error
        if "start new thread" in str(error):
            raise BadInput("the machine starts no more threads. Use fewer.") from error
        raise


def line_of(error: BaseException) -> str:
    """Return an error's text as one line that a terminal can show, whatever characters it has."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _file_error(error: OSError) -> str:
    path = next((os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, str | bytes)), "")
    advice = ADVICE.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return f"{path if len(path) <= LONGEST // 2 else f'{path[:100]} …'}: {advice}" if path else advice


def listed(names: Iterable[str]) -> str:
    """List at most ten names, and count the rest."""
    known = list(names)
    rest = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return ", ".join(known[:MOST_LISTED]) + rest


def suggestion(name: object, names: Iterable[str]) -> str:
    """Ask whether the nearest known name was meant, or list the names to choose from."""
    known = list(names)
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Choose one of {listed(known)}." if known else "None is known here."
