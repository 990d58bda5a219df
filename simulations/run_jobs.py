"""Do an experiment's jobs, those that are not done yet, in processes of their own."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from simulations.result_store import Job, ResultStore, Row


def run_jobs(
    jobs: Sequence[Job],
    store: ResultStore,
    *,
    workers: int,
    prepare: Callable[[], None] | None = None,
    fresh_process: bool = False,
) -> list[Row]:
    """Do the jobs that the store has no results of, keep theirs, and return those of all.

    Parameters
    ----------
    jobs : sequence of Job
        Each is done once, in any order.
    store : ResultStore
        Gets the results of each job as soon as it is done.
    workers : int
        Processes; with 1 the jobs are done in this one.
    prepare : callable, optional
        What each other process does first.
    fresh_process : bool
        Give each job a process of its own, so that its peak memory is its own too.

    Returns
    -------
    list of dict
        The rows of all jobs, in their order.
    """
    todo = [job for job in jobs if not store.has(job)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    results: Iterator[tuple[Job, list[Row]]] = ((job, job.run()) for job in todo)
    if workers > 1 or fresh_process:
        results = _in_processes(todo, workers, prepare, 1 if fresh_process else None)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(store.folder.name, total=len(todo))
        for job, rows in results:
            store.add(job, rows)
            progress.advance(task)
    return store.rows(jobs)


def _in_processes(
    jobs: Sequence[Job],
    workers: int,
    prepare: Callable[[], None] | None,
    jobs_per_process: int | None,
) -> Iterator[tuple[Job, list[Row]]]:
    """Yield jobs and their results as they are done."""
    # A forked process would inherit torch's threads in an undefined state.
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=prepare,
        max_tasks_per_child=jobs_per_process,
    ) as pool:
        futures = {pool.submit(_run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _run(job: Job) -> list[Row]:
    return job.run()
