"""Shared file system check: every worker must see the client's input, and the folder that the output goes to.

It is made before anything of the output is there: the client writes a file beside the ledger, each worker reads that
and writes one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isovoxel.execution.distributed.rpc import ask_workers
from isovoxel.execution.distributed.worker_info import ANSWER_SECONDS, WorkerInfo
from isovoxel.execution.executor import Task
from isovoxel.execution.retry import clause
from isovoxel.object_store.addresses import Place, absolute, write_small
from isovoxel.output.ledger import ledger_of
from isovoxel.readers.files import CHUNKS

PROBE = "probe"
"""How the names of files begin that show whether a folder is the same everywhere."""


@contextlib.contextmanager
def probe(folder: Place) -> Iterator[tuple[Place, str]]:
    """Write a file into the ledger's folder for as long as workers look for it; return its path and what it says."""
    token = uuid.uuid4().hex
    path = absolute(folder) / f"{PROBE}-{token}"
    write_small(path, token.encode())
    try:
        yield path, token
    finally:
        for left in folder.iterdir():
            if left.name.startswith(PROBE):
                with contextlib.suppress(FileNotFoundError):  # its worker was about to
                    left.unlink()


async def sees(task: Task, identity: Mapping[str, Any], path: Place, token: str) -> str:
    """Return what is wrong with how a worker sees input and output, or nothing; runs there."""
    return await asyncio.to_thread(_sees, task, identity, path, token)


def _sees(task: Task, identity: Mapping[str, Any], path: Place, token: str) -> str:
    try:
        volume = task.open().identified()
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker cannot read it
        return f"cannot open the input: {clause(error)}"
    if changed := [key for key, value in identity.items() if key != CHUNKS and volume.identity.get(key) != value]:
        return f"sees another input: its {' and '.join(changed)} differ"
    where = f"the output's folder {path.parent.parent}" if isinstance(path, Path) else f"the output {task.output}"
    try:
        if path.read_text() != token:
            return f"sees another one where {where} is"
        own = path.with_name(f"{path.name}-{os.getpid()}")
        write_small(own, token.encode())
        own.unlink()
    except FileNotFoundError:
        return f"does not see {where}"
    except OSError as error:
        return f"cannot write to {where}: {error.strerror}"
    return ""


def blind(client: Any, task: Task, identity: Mapping[str, Any], members: Sequence[WorkerInfo]) -> dict[str, str]:
    """Return what is wrong with how workers see input and output, by their addresses; all is well where it is empty.

    Raises
    ------
    ClusterError
        If workers do not answer.
    """
    with probe(ledger_of(task.output)) as (path, token):
        addresses = [member.address for member in members]
        found = ask_workers(client, sees, task, identity, path, token, workers=addresses, seconds=ANSWER_SECONDS)
    return {
        address: said if isinstance(said, str) else f"does not say what it sees: {clause(said)}"
        for address, said in found.items()
        if said
    }
