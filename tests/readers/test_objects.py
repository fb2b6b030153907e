"""What lies in an object store is read as what lies on the disk: the same voxels, identity and refusals."""

from __future__ import annotations

import pickle
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import bad_inputs
from isovoxel.errors import AddressError, CorruptInputError, InputError, InputMissingError, InputUnavailableError
from isovoxel.geometry.grid import Box
from isovoxel.object_store import clients, retries
from isovoxel.object_store.objects import ObjectPlace
from isovoxel.object_store.retries import is_transient, patience
from isovoxel.readers.open import open_volume
from isovoxel.readers.zarr_array import ChunkReader
from isovoxel.readers.zarr_layout import AT_ONCE
from isovoxel.readers.zarr_python import ZarrReader
from store_server import Server, upload

VOXELS = np.random.default_rng(3).integers(0, 60000, (20, 33, 40)).astype("uint16")
BOXES = [Box((0, 0, 0), (20, 33, 40)), Box((3, 5, 7), (17, 20, 33)), Box((19, 32, 39), (20, 33, 40))]


@pytest.fixture
def place(server: Server, request: pytest.FixtureRequest) -> Iterator[ObjectPlace]:
    place = ObjectPlace("s3://bucket", request.node.function.__name__)
    yield place
    server.let_be()
    place.delete_tree()
    clients._clients.clear()


KINDS = {
    "shards": {"chunks": (8, 16, 16), "shards": (16, 32, 32), "compressors": BloscCodec()},
    "index at start": {
        "chunks": (8, 16, 16),
        "serializer": zarr.codecs.ShardingCodec(chunk_shape=(4, 8, 8), index_location="start"),
        "compressors": None,
    },
    "zstd": {"chunks": (7, 16, 11), "compressors": ZstdCodec()},
    "checksum": {"chunks": (7, 16, 11), "compressors": [GzipCodec(), Crc32cCodec()]},
    "raw": {"chunks": (8, 8, 8), "compressors": None},
    "v2": {"chunks": (8, 16, 16), "zarr_format": 2},
    "by zarr-python": {"chunks": (8, 16, 16), "filters": [TransposeCodec(order=(2, 1, 0))]},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_voxels_come_from_an_object_store(kind: str, place: ObjectPlace, tmp_path: Path) -> None:
    """Arrays of all layouts, with chunks that are not stored, box by box, cached or not, here or elsewhere."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=VOXELS.shape, dtype="uint16", fill_value=7, **KINDS[kind])
    array[:16, :, :16] = VOXELS[:16, :, :16]
    volume = open_volume(str(upload(tmp_path / "a.zarr", place)))
    local = open_volume(tmp_path / "a.zarr")
    assert isinstance(volume.read, ZarrReader if kind == "by zarr-python" else ChunkReader)
    assert (volume.shape, volume.dtype, volume.chunks) == (local.shape, local.dtype, local.chunks)
    readers = [volume.read, pickle.loads(pickle.dumps(volume.read))]  # noqa: S301 - our own
    if volume.cached:
        readers.append(volume.cached(2**20))
    for read in readers:
        for box in BOXES:
            np.testing.assert_array_equal(read(box), local.read(box))


def test_an_image_has_its_voxel_size_name_and_identity(place: ObjectPlace, tmp_path: Path) -> None:
    """The identity is the address, the metadata and when they were written: it changes when they are written anew."""
    upload(bad_inputs.image(tmp_path), place)
    volume = open_volume(f"{place}/")
    assert volume.name == str(place)
    assert (volume.voxel_size, volume.unit) == (bad_inputs.VOXEL_SIZE, "micrometer")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), bad_inputs.VOXELS)
    local = open_volume(tmp_path / "a.zarr")
    assert volume.identity["path"] == str(place)
    assert volume.identity["metadata"] == local.identity["metadata"]
    assert volume.identity["mtime_ns"] > 1.6e18
    assert open_volume(str(place)).identity == volume.identity


@pytest.mark.parametrize("shards", [None, (4, 32, 32)])
def test_a_server_that_only_serves_files_is_read(
    server: Server, tmp_path: Path, shards: tuple[int, int, int] | None
) -> None:
    """By http, of which nothing is known but how to get an object, and parts of it."""
    image = bad_inputs.image(tmp_path, shards=shards)
    address = f"{server.endpoint}/bucket/by%20http"
    for path in filter(Path.is_file, image.rglob("*")):
        server.put(f"bucket/by%20http/{path.relative_to(image)}", path.read_bytes())
    volume = open_volume(address)
    assert volume.name == address == volume.identity["path"]
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), bad_inputs.VOXELS)
    with pytest.raises(InputMissingError, match="is not there, or may not be read with no credentials"):
        open_volume(f"{server.endpoint}/bucket/nothing")
    ObjectPlace("s3://bucket", "by http").delete_tree()


def test_file_addresses_are_paths(tmp_path: Path) -> None:
    """Of any kind of input."""
    path = Path(bad_inputs.good(tmp_path))
    assert open_volume(path.as_uri()).shape == bad_inputs.VOXELS.shape


def test_a_chunk_takes_one_request_and_a_shard_one_for_its_index(
    server: Server, place: ObjectPlace, tmp_path: Path
) -> None:
    """Its size comes with it; an index is kept with what tells its object from another."""
    for shards, first, again in ((None, 8, 8), ((16, 16, 16), 10, 8)):
        array = zarr.create_array(
            tmp_path / f"{shards}", shape=(16, 16, 16), chunks=(8, 8, 8), shards=shards, dtype="uint8"
        )
        array[...] = 1
        volume = open_volume(str(upload(tmp_path / f"{shards}", place / f"{shards}")))
        for expected in (first, again):
            before = len(server.asked)
            volume.read(Box.whole(volume.shape))
            assert len(server.asked) - before == expected


def test_a_few_chunks_are_asked_for_at_once(server: Server, place: ObjectPlace, tmp_path: Path) -> None:
    """A store that answers only when four requests are there answers; more than a few it never sees at a time."""
    array = zarr.create_array(tmp_path / "a", shape=(16, 32, 32), chunks=(8, 8, 8), dtype="uint8")
    array[...] = 1
    volume = open_volume(str(upload(tmp_path / "a", place)))
    four, lock, now, most = threading.Barrier(4), threading.Lock(), 0, 0

    def answer(_method: str, _path: str) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        four.wait(60)
        with lock:
            now -= 1
        return 0

    server.instead = answer
    assert volume.read(Box.whole(volume.shape)).all()
    assert 4 <= most <= AT_ONCE


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["shards", "raw", "zstd"])
def test_reading_holds_no_more_than_it_says(kind: str, place: ObjectPlace, tmp_path: Path) -> None:
    """Beside the returned array, of what Python and NumPy hold; chunks of 256 KiB, so that copies show."""
    noise = np.random.default_rng(0).integers(0, 65536, (64, 128, 128)).astype("uint16")
    given = KINDS[kind] | {"chunks": (32, 64, 64)} | ({"shards": (64, 64, 64)} if kind == "shards" else {})
    zarr.create_array(tmp_path / "a", data=noise, **given)
    volume = open_volume(str(upload(tmp_path / "a", place)))
    out = np.empty(volume.shape, volume.dtype)
    box = Box.whole(volume.shape)
    volume.read(box, out)
    peaks = []
    for _ in range(3):  # the server's threads, in the same process, hold what they have not sent yet
        tracemalloc.start()
        try:
            volume.read(box, out)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) <= volume.read_overhead
    np.testing.assert_array_equal(out, noise)


def test_a_shard_that_is_replaced_meanwhile_is_read_anew(place: ObjectPlace, tmp_path: Path) -> None:
    """The kept index is for another object: that may pass, says the error, and the next attempt has the new voxels."""
    for value in (1, 2):
        array = zarr.create_array(
            tmp_path / f"{value}", shape=(16, 16, 16), chunks=(8, 8, 8), shards=(16, 16, 16), dtype="uint8"
        )
        array[...] = np.random.default_rng(value).integers(0, 5, (16, 16, 16)) + value
    volume = open_volume(str(upload(tmp_path / "1", place)))
    box = Box.whole(volume.shape)
    volume.read(box)
    upload(tmp_path / "2", place)
    with pytest.raises(InputUnavailableError, match="changed meanwhile") as failure:
        volume.read(box)
    assert is_transient(failure.value)
    np.testing.assert_array_equal(volume.read(box), array[...])


@pytest.mark.parametrize("codec", ["blosc", "zstd", "gzip"])
def test_a_bomb_is_a_corrupt_chunk(codec: str, place: ObjectPlace, tmp_path: Path) -> None:
    """What an object says of its size is not believed."""
    bomb = {"blosc": bad_inputs.BLOSC_BOMB, "zstd": bad_inputs.ZSTD_BOMB, "gzip": bad_inputs.GZIP_BOMB}[codec]
    upload(Path(bad_inputs.chunk(bomb, codec)(tmp_path)), place)
    volume = open_volume(str(place))
    with pytest.raises(CorruptInputError, match="is corrupt"):
        volume.read(Box.whole(volume.shape))


def test_a_chunk_too_long_is_not_received(place: ObjectPlace, tmp_path: Path) -> None:
    """Its size is looked at first."""
    upload(Path(bad_inputs.chunk(bytes(3_000_000))(tmp_path)), place)
    volume = open_volume(str(place))
    with pytest.raises(CorruptInputError, match="3000000 encoded bytes are more than any chunk"):
        volume.read(Box.whole(volume.shape))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("status", "passes"), [(503, True), (500, True), (429, True), (403, False), (400, False)])
@pytest.mark.parametrize("kind", ["raw", "by zarr-python"])
def test_what_a_server_refuses_may_pass_or_not(
    server: Server,
    place: ObjectPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    status: int,
    passes: bool,
) -> None:
    """An overloaded server is asked again by those who know how; nothing that it sent is repeated."""
    monkeypatch.setattr(clients, "RETRIES", 0)
    clients._clients.clear()
    array = zarr.create_array(tmp_path / "a", shape=VOXELS.shape, dtype="uint16", **KINDS[kind])
    array[...] = VOXELS
    volume = open_volume(str(upload(tmp_path / "a", place)))
    server.instead = lambda _method, path: status if "/c/" in path else 0
    server.asked.clear()
    with pytest.raises(InputUnavailableError, match=f"{place} cannot be read, in chunk") as failure:
        volume.read(BOXES[1])
    assert (max(map(server.asked.count, server.asked)) > len(retries.PAUSES)) == passes
    assert not is_transient(failure.value)  # any more
    assert "AKIA" not in str(failure.value)
    server.let_be()
    np.testing.assert_array_equal(volume.read(BOXES[1]), VOXELS[BOXES[1].slices])


def test_a_few_failures_are_not_even_noticed(server: Server, place: ObjectPlace, tmp_path: Path) -> None:
    """Every third request is refused once; the client asks again."""
    array = zarr.create_array(tmp_path / "a", shape=VOXELS.shape, dtype="uint16", **KINDS["raw"])
    array[...] = VOXELS
    upload(tmp_path / "a", place)
    lock, turn = threading.Lock(), iter(range(10**6))

    def refuse(_method: str, _path: str) -> int:
        with lock:
            return 503 if next(turn) % 3 == 0 else 0

    server.instead = refuse
    volume = open_volume(str(place))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: volume.read(BOXES[2]), range(6)):
            np.testing.assert_array_equal(got, VOXELS[BOXES[2].slices])


def test_a_server_that_does_not_answer_may_do_so_later(place: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there."""
    monkeypatch.setattr(clients, "RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told: list[float] = []
    with (
        patience(lambda _, pause: told.append(pause)),
        pytest.raises(InputUnavailableError, match="cannot be read: s3://bucket does not answer"),
    ):
        open_volume(str(place))
    assert told == list(retries.PAUSES)


def test_what_is_no_zarr_is_said(place: ObjectPlace, tmp_path: Path) -> None:
    """A TIFF is to be downloaded; a group without an image has its arrays named; what is not there may be hidden."""
    upload(Path(bad_inputs.good(tmp_path)).parent, place)
    with pytest.raises(
        InputError, match=r"a.tif is a file, and by address isovoxel reads OME-Zarr and zarr arrays only; download it"
    ):
        open_volume(f"{place}/a.tif")
    zarr.create_group(tmp_path / "group").create_array("inner/a", shape=(4, 4, 4), dtype="uint8")
    upload(tmp_path / "group", place / "group")
    with pytest.raises(InputError, match=f"name one of its arrays: {place}/group/inner/a$"):
        open_volume(f"{place}/group")
    for missing in (f"{place}/nothing", "s3://bucket", "s3://no-such-bucket/a.zarr"):
        with pytest.raises(InputMissingError, match="AWS_ACCESS_KEY_ID is set, AWS_PROFILE is not set"):
            open_volume(missing)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s3://key:secret@bucket/a.zarr", "has a user"),
        ("s3://key:sec/ret@bucket/a.zarr", "has a user"),
        ("https://host/a.zarr?X-Amz-Signature=secret", "a query"),
        ("https://host/a.zarr#secret", "a fragment"),
        ("ftp://host/a.zarr", "has a scheme that isovoxel does not know"),
        ("memory://secret", "has a scheme that isovoxel does not know"),
        ("s3:///a.zarr", "names no bucket"),
        ("s3://bucket/../a.zarr", "a dot for a part"),
        ("s3://bucket/a//b", "an empty part"),
        ("http://[::1/a", "is no address"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, why: str) -> None:
    """With the reason, and without what may be secret in it."""
    with pytest.raises(AddressError, match=why) as failure:
        open_volume(address)
    assert "secret" not in str(failure.value).replace("memory://secret", "")


def test_without_credentials_it_is_said_where_they_were_looked_for(
    place: ObjectPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment, in a profile, and nowhere else: no request is made for them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputUnavailableError, match=r"ACCESS_KEY_ID is not set, AWS_PROFILE is set, .*ProfileNotFound"):
        open_volume(str(place))
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(
        InputUnavailableError, match=r"AWS_PROFILE is not set, and no profile or role has any; set AWS_S"
    ):
        open_volume(str(place))


def test_a_profile_gives_credentials(place: ObjectPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the AWS command line reads it."""
    upload(bad_inputs.image(tmp_path), place)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = shh\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert open_volume(str(place)).shape == bad_inputs.VOXELS.shape


def test_a_missing_extra_is_named(place: ObjectPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(AddressError, match=r'takes obstore; pip install "isovoxel\[cloud\]"'):
        open_volume(str(place))
