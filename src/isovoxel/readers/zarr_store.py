"""zarr-python's store for obstore, with our words for what fails."""

from __future__ import annotations

import asyncio
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from isovoxel.object_store.clients import client, sought
from isovoxel.object_store.failures import told
from isovoxel.object_store.retries import Attempts


class RootStore(ObjectStore[Any]):
    """A whole object store, to be read only; another process gets its name and no credentials.

    Parameters
    ----------
    root
        The store, as `isovoxel.object_store.address.Address` has it.
    """

    def __init__(self, root: str) -> None:
        super().__init__(client(root), read_only=True)
        self.root = root

    def __reduce__(self) -> tuple[type[RootStore], tuple[str]]:
        return (RootStore, (self.root,))

    def __str__(self) -> str:
        return self.root

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what an object holds, or a part of it; None where there is none.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        attempts = Attempts()
        while True:
            try:
                with told(self.root, sought(self.root)):
                    found = await super().get(key, prototype, byte_range)
            except OSError as error:
                await asyncio.to_thread(attempts.pause, error)
            else:
                attempts.succeed()
                return found
