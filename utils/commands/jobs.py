"""Work spread over processes, and other commands of this project as processes of their own."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from utils.commands.errors import CHILD, UserError


def processors() -> int:
    """How many processors this process may use: of a machine that a scheduler or `taskset` shares out, its part."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_child(command: Sequence[str]) -> int:
    """Run another command of this project (`run_main`), which ends when this process does, however it does; returns its
    exit code."""
    # Its standard input is a pipe that nothing is written to: it closes with this process.
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {CHILD: "1"}) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # which it takes its time for, unlike being killed
            process.wait()
            raise


def progress(items: Iterable | None = None, unit: str = "image", hidden: bool = False, **options: Any) -> tqdm:
    """A progress bar of tqdm on a terminal; elsewhere nothing, so that a log file has no control characters."""
    # tqdm writes "3.2image/s" where the unit does not begin with a space.
    return tqdm(items, unit=f" {unit}", disable=True if hidden else None, **options)


def in_threads(work: Callable, items: Sequence, title: str, unit: str = "image") -> list:
    """``work`` of every item, several at a time: decoding, resizing and distances release the interpreter lock."""
    threads = processors() + 4  # some wait for files
    hidden = None if items else True
    return thread_map(work, items, max_workers=threads, desc=title, unit=f" {unit}", disable=hidden, tqdm_class=tqdm)


class Workers(ProcessPoolExecutor):
    """Processes that leave Ctrl-C to this one, drop the jobs not begun when it is interrupted, and end when it ends."""

    def __init__(self, count: int, context: BaseContext | None = None, setup: Callable[[], object] | None = None):
        """context: how processes are started, by default as the system does. setup: called in each of them first."""
        super().__init__(count, context, _begin_worker, (setup,))

    def submit(self, *job: object, **keywords: object) -> Future:
        """`Executor.submit`."""
        # A process that is being started has the mask of this one: Ctrl-C, which reaches every process of a terminal,
        # must not end it in the midst of its imports with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*job, **keywords)  # type: ignore[arg-type]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def _begin_worker(setup: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    if setup:
        setup()


def _end_with(parent: BaseProcess) -> None:
    parent.join()  # else a worker would wait for jobs of a parent that was killed for ever
    os._exit(1)


def run_jobs(job: Callable, items: list, workers: int, label: str) -> tuple[list, list[str]]:
    """Call ``job(item)`` for every item over ``workers`` processes, with a progress bar.

    Returns (results in the order of ``items``, messages of the items that raised `UserError`, in that order);
    a failed item's result is None. Any other exception is a defect and is raised. Raises `UserError` if a process was
    killed.
    """
    results: list = [None] * len(items)
    failures: dict[int, str] = {}

    def collect(index: int, outcome: Callable) -> None:
        try:
            results[index] = outcome()
        except UserError as error:
            failures[index] = str(error)

    with progress(total=len(items), desc=label, unit="file") as bar:
        if workers <= 1:
            for index, item in enumerate(items):
                collect(index, lambda item=item: job(item))
                bar.update()
        else:
            with ExitStack() as stack:
                try:
                    pool = stack.enter_context(Workers(workers))
                    futures = {pool.submit(job, item): index for index, item in enumerate(items)}
                except OSError as error:
                    raise UserError(
                        f"processes cannot be started ({error.strerror}); is /dev/shm there, and not full? --workers 1 "
                        "does without, where there is that flag"
                    ) from error
                try:
                    for future in as_completed(futures):
                        collect(futures[future], future.result)
                        bar.update()
                except BrokenProcessPool as error:
                    raise UserError("a process was killed, mostly for want of memory: use fewer --workers") from error
    return results, [failures[index] for index in sorted(failures)]
