"""Settings and fixtures that all tests share."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from command_line import Isovoxel, Outcome
from isovoxel.object_store.objects import ObjectPlace
from store_server import Server, serving
from strategies import THOROUGH

# Tests never depend on time; a slow machine is not a failure. `.ci/run` tries more examples than the fast tests do.
settings.register_profile("thorough", deadline=None, max_examples=THOROUGH)
settings.register_profile("isovoxel", deadline=None, max_examples=3 * THOROUGH // 10)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "isovoxel"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but some cases of each test that is marked `sampled`, evenly spread."""
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            cases[item.nodeid.partition("[")[0]].append(item)
    for found in cases.values():
        mark = found[0].get_closest_marker("sampled")
        assert mark is not None
        (keep,) = mark.args
        kept = {number * len(found) // keep for number in range(keep)}
        for number, item in enumerate(found):
            if number not in kept:
                item.add_marker("slow")


def pytest_configure() -> None:
    """Collect no garbage among what is loaded, which stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave the thousands of tests out of garbage collections, which jobs run after each level."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Leave out what a file of tests has loaded too, once its garbage is gone."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let files be flushed to the system alone: no test cuts the power, and thousands of jobs wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_rates() -> None:
    """Let no job leave how long it took among those of the user, and none read it; processes inherit this."""
    os.environ["ISOVOXEL_RATES"] = ""


@pytest.fixture(autouse=True)
def _ctrl_c() -> None:
    """Let Ctrl-C interrupt this process and those that it starts, whatever shells and libraries have made of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _parser() -> Callable[[], Any]:
    """Return what makes the command line, once for all tests: each time takes 10 ms."""
    from isovoxel import cli

    return functools.cache(cli.command)


@pytest.fixture
def isovoxel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], _parser: Callable[[], Any]
) -> Isovoxel:
    """Run the command line in this process."""
    from isovoxel import cli

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["isovoxel", *map(str, words)])
        monkeypatch.setattr(cli, "command", _parser)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert isinstance(exit_.value.code, int)
        return Outcome(exit_.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def blastocyst() -> Any:
    """Return the demo's stack, which takes a second to make."""
    from isovoxel import demo

    return demo.blastocyst()


@pytest.fixture
def _made_before(monkeypatch: pytest.MonkeyPatch, blastocyst: Any) -> None:
    """Let the demo write the stack that other tests have made."""
    from isovoxel import demo

    monkeypatch.setattr(demo, "blastocyst", lambda: blastocyst)


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the `VOXELS` of a test's module as a file, or those of `small_jobs`, which make several blocks."""
    import numpy as np

    import small_jobs

    np.save(tmp_path / "in.npy", getattr(request.module, "VOXELS", small_jobs.VOXELS))
    return tmp_path / "in.npy"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.zarr"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return an S3 server on this machine, for all tests of a module."""
    with serving() as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[ObjectPlace]:
    """Return the bucket of an S3 server of a test's own."""
    with serving():
        yield ObjectPlace("s3://bucket", "")
