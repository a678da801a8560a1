"""Run a program that ends with whoever started it: `python -I child.py PARENT SIGNAL PROGRAM ARGUMENT…`.

- The kernel sends SIGNAL when the thread that started this process is gone, killed ones included: prctl(2),
  PR_SET_PDEATHSIG, which the program inherits through exec(3).
- PARENT is the starter's process id: where it has gone before the kernel was asked, nothing is run.

A script of the standard library alone, so that it costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def end_with_parent(number: int) -> None:
    """Ask the kernel for signal `number` when the parent is gone.

    It counts the thread that started us: one that lives as long as its process.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


def main(arguments: list[str]) -> None:
    """`PARENT SIGNAL PROGRAM ARGUMENT…`."""
    parent, number, *command = arguments
    end_with_parent(int(number))
    if os.getppid() == int(parent):
        os.execv(command[0], command)  # noqa: S606 - the same arguments, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
