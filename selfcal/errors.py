"""The errors a user can meet, each with its exit code.

Every error says what is wrong, where, what was expected and how to fix it; the
command line prints exactly that, without a traceback unless ``--debug`` is given.

====  =========================================
code  meaning
====  =========================================
0     success
2     usage or configuration (:class:`ConfigError`)
3     data (:class:`DataError`)
4     fit (:class:`FitError`)
5     stopped before its end, to be gone on with (:class:`Interrupted`)
====  =========================================
"""

from __future__ import annotations

from typing import ClassVar


class SelfcalError(Exception):
    """Base of all expected failures.

    Parameters
    ----------
    problem : what is wrong, one sentence.
    where : file, dataset, field or configuration key (with line).
    expected : what would have been right.
    fix : what the user can do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.problem]
        for label, text in (
            ("where", self.where),
            ("expected", self.expected),
            ("fix", self.fix),
        ):
            if text:
                lines.append(f"  {label + ':':<10}{text}")
        return "\n".join(lines)


class ConfigError(SelfcalError):
    """A configuration, a data card or the command line is wrong."""

    exit_code = 2


class DataError(SelfcalError):
    """An input file is missing, damaged or does not hold what its card says."""

    exit_code = 3


class FitError(SelfcalError):
    """A fit did not converge or cannot be done with these inputs."""

    exit_code = 4


class Interrupted(SelfcalError):
    """The program was stopped: by the user, for want of memory, or as another process of torchrun ended.

    What was finished is kept, and the same command goes on from there.
    """

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: PyTorch has no exception of its own for memory outside a GPU."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in words)
    )
