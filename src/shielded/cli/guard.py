# SPDX-License-Identifier: Apache-2.0
"""From exceptions to one sentence and an exit code."""

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from shielded.errors import NotClear, ShieldedError, ShieldedWarning

BAD_INPUT, NOT_CLEAR, INTERRUPTED = 2, 3, 130


def say(sentence: str) -> None:
    """One line on stderr, so that stdout stays clean for --json."""
    print(" ".join(sentence.split()), file=sys.stderr)


class Kept:
    """What a run has already saved, for the sentence that ends it early."""

    def __init__(self) -> None:
        self.images = 0
        self.folder: str | None = None

    def __str__(self) -> str:
        if not self.images:
            return ""
        noun = "finished image is" if self.images == 1 else "finished images are"
        return f" {self.images} {noun} in {self.folder}."


@contextmanager
def guarded(kept: Kept | None = None) -> Iterator[None]:
    """Turn the errors that a user can cause into a sentence on stderr and an exit code."""
    saved = kept or Kept()
    try:
        with _warnings_said():
            yield
    except KeyboardInterrupt:
        say(f"Interrupted.{saved}")
        raise typer.Exit(INTERRUPTED) from None
    except NotClear as error:
        say(f"{_sentence(error)}{saved}")
        raise typer.Exit(NOT_CLEAR) from None
    except ShieldedError as error:
        say(f"{_sentence(error)}{saved}")
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:
        say(f"{_disk(error)}{saved}")
        raise typer.Exit(BAD_INPUT) from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        say(f"Out of memory: use a smaller --batch-size.{saved}")
        raise typer.Exit(BAD_INPUT) from None


@contextmanager
def _warnings_said() -> Iterator[None]:
    """This library's warnings as sentences; those of others as Python shows them."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, ShieldedWarning):
                say(str(message)[:1].upper() + str(message)[1:])
            else:
                others(message, category, *where)

        warnings.showwarning = show
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on an accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."


def _disk(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full: free some space and run the command again."
    where = f" {error.filename}" if error.filename else ""
    return f"Reading or writing{where} failed: {error.strerror or error}."
