"""The middle of a gzip file, read without what lies before it more than once."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isovoxel.readers.files import EndOfFileError
from isovoxel.readers.raw import MOST_MARKS, GzipMarks, GzipStream
from strategies import examples

DATA = np.random.default_rng(5).integers(0, 40, 3_000_000, np.uint8).tobytes()


@pytest.fixture(scope="module", params=["one member", "many members"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a gzip file in one piece, or in pieces as bgzip writes them, with an empty one at its end."""
    file = tmp_path_factory.mktemp("gz") / "a.gz"
    step = len(DATA) if request.param == "one member" else 65_280
    members = [gzip.compress(DATA[i : i + step], 1) for i in range(0, len(DATA), step)]
    file.write_bytes(b"".join(members) + gzip.compress(b""))
    return file


def read(stream: GzipStream, start: int, count: int) -> bytes:
    buffer = bytearray(count)
    done = 0
    stream.seek(start)
    while done < count:
        done += stream.readinto(memoryview(buffer)[done:])
    return bytes(buffer)


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 300_000)), min_size=1, max_size=5),
    spacing=st.sampled_from([65_280, 100_003, 1_000_000, 5_000_000]),
)
def test_any_bytes_are_read_in_any_order(path: Path, spans: list[tuple[int, int]], spacing: int) -> None:
    """Back and forth, in one stream and in others that share its marks."""
    marks = GzipMarks(len(DATA), spacing)
    with marks.open("a", str(path)) as stream:
        for start, count in spans:
            end = min(len(DATA), start + count)
            assert read(stream, start, end - start) == DATA[start:end]
            with marks.open("a", str(path)) as other:
                assert read(other, start, end - start) == DATA[start:end]


def test_a_second_read_begins_at_a_mark(path: Path) -> None:
    """What lies before it is not read again, neither from the file nor by the decompressor."""
    marks = GzipMarks(len(DATA), 100_000)
    with marks.open("a", str(path)) as stream:
        assert read(stream, len(DATA) - 10, 10) == DATA[-10:]
    with marks.open("a", str(path)) as stream:
        stream.seek(2_950_000)
        assert marks.before(2_950_000).position == 2_900_000
        began = marks.before(2_950_000).offset
        assert began > 0.9 * path.stat().st_size


def test_marks_are_few_however_long_the_file() -> None:
    """Their memory does not grow with the volume."""
    for total in (1, 10**6, 10**10, 10**15):
        assert total / GzipMarks(total).spacing <= MOST_MARKS


def test_another_process_makes_marks_of_its_own() -> None:
    """Decompressors cannot be sent."""
    marks = pickle.loads(pickle.dumps(GzipMarks(10**10)))  # noqa: S301 - it is our own
    assert marks.spacing == GzipMarks(10**10).spacing


def test_the_end_is_an_error(path: Path) -> None:
    """Nobody gets fewer bytes than asked for."""
    with GzipMarks(len(DATA)).open("a", str(path)) as stream, pytest.raises(EndOfFileError, match="cut short"):
        read(stream, len(DATA) - 5, 6)
