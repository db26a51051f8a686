"""Worker processes that never outlive the process that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection


def _prepare_worker(lifeline: Connection) -> None:
    """Leave interrupts to the parent, end with it, and keep library banners off standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def watch() -> None:
        try:
            lifeline.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """``workers`` spawned processes that end with the block, or with this process however it ends."""
    context = multiprocessing.get_context("spawn")
    read_end, write_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, _prepare_worker, (read_end,))
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        executor.shutdown()
    finally:
        write_end.close()
        read_end.close()
