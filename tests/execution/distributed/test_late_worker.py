"""A worker that comes while a job runs does blocks of it only where its engine gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import isovoxel
from execution.distributed.clusters import OPTIONS, Foreign, stack
from isovoxel.execution.distributed import submission
from isovoxel.execution.events import BlockDone, Event, WorkerJoined, WorkerLeft
from isovoxel.execution.output import OutputState, output_state


@pytest.mark.slow
@pytest.mark.parametrize("late", ["prototype", "pyclesperanto"])
def test_a_late_worker_takes_part_only_with_the_same_clesperanto(
    tmp_path: Path, out: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """One with the other generation is named, with what it has and what the job has; the first worker goes on."""
    for package in ("pyclesperanto_prototype", "pyclesperanto"):
        pytest.importorskip(package)
    from distributed import Client

    monkeypatch.setattr(submission, "WATCH_SECONDS", 0.0)
    events = list[Event]()
    foreign.worker("first", ISOVOXEL_CLE="prototype")

    def add_worker(event: Event) -> None:
        """Hold the job up at its first block until the second worker is there."""
        events.append(event)
        if isinstance(event, BlockDone) and len(foreign.processes) == 2:
            foreign.worker("second", ISOVOXEL_CLE=late)
            client.wait_for_workers(2, timeout=600)

    with Client(foreign.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=600)
        isovoxel.scale(stack(tmp_path), out, client=client, listeners=[add_worker], engine="cle", levels=0, **OPTIONS)
    assert output_state(out) == OutputState(complete=True)
    joined = [event.name for event in events if isinstance(event, WorkerJoined)]
    left = {event.name: event.reason for event in events if isinstance(event, WorkerLeft)}
    if late == "prototype":
        assert (joined, left) == (["first", "second"], {})
    else:
        assert joined == ["first"]
        assert list(left) == ["second"]
        assert left["second"].startswith("it cannot take part: its clEsperanto is not pyclesperanto-prototype 0.24.")
        assert ": pyclesperanto 0.25." in left["second"]
