"""A block on its way through a device: in pieces, where the device has no room for the whole.

A plan counts on memory that another program may take while it is carried out, or that a driver told of and does not
give. Then a block is halved along its longest axis until the pieces fit. Neither reading nor writing knows of pieces: a
block keeps its memory on the host, of which a piece uploads a part and into a part of which its result is put.

1. A piece is a block of its own: its rows, read box and pads follow from its place in the volume. So the exact engine
   has the same bits however a block is cut; cle agrees within its texture precision, and nearest with 0 around the
   volume up to ties, about which float32 decides in a block at the volume's start (see `isovoxel.engines.cle`).
2. A piece for which memory runs out is tried again while no other block is on the device and nothing is kept there.
   Only what fails then is halved.
3. What was learnt of a plan's blocks holds for those to come (`Fit`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.base import Cancelled, Scaled
from isovoxel.engines.buffers import HostPair, Lane, device_bytes, halves
from isovoxel.engines.opencl import TURN, DriverError, driver_reason, is_lost, is_out_of_memory, let_go_of
from isovoxel.errors import DeviceFullError
from isovoxel.geometry.grid import Index3
from isovoxel.planning.memory import human_bytes
from isovoxel.planning.model import Block
from isovoxel.planning.plan import Plan

if TYPE_CHECKING:
    from isovoxel.engines.pipeline import StagedEngine

T = TypeVar("T")


class StagedBlock:
    """One block on its way: where its input is read to, and where its result lies."""

    def __init__(self, engine: StagedEngine, block: Block, plan: Plan, hosts: HostPair) -> None:
        self._engine, self._block, self._plan = engine, block, plan
        self._source, self._target = hosts
        self._waited = 0.0
        self._halves = plan.halves_of(block)

    @property
    def input(self) -> NDArray[Any]:
        """Where the voxels of ``block.read_box`` belong, until the block is scaled."""
        return self._source.view(self._block.read_box.shape, self._kind)

    @property
    def _output(self) -> NDArray[Any]:
        return self._target.view(self._block.write_box.shape, self._kind)

    @property
    def _kind(self) -> np.dtype[Any]:
        return np.dtype(self._plan.source.dtype)

    def scale(self, cancelled: threading.Event | None = None) -> Scaled:
        """Return the voxels of ``block.write_box``; see `isovoxel.engines.base.Stage`."""
        engine, plan, pieces = self._engine, self._plan, 0
        waiting = [(self._block, 0)]
        while waiting:
            piece, depth = waiting.pop()
            parts = halves(piece, plan) if depth < engine.fit.depth(plan) else ()
            if not parts and (reason := self._refused(piece, depth, cancelled)):
                engine.fit.too_large(plan, depth)
                if not (parts := halves(piece, plan)):
                    engine.fit.forget()  # when there is room again, it may be as much as there was
                    raise DeviceFullError(
                        f"{engine.device.name} has no room for {human_bytes(device_bytes(piece, plan))}, which a piece "
                        f"of {piece.write_box.shape} voxels takes: {reason}; end what else uses its memory, or choose "
                        "another --device"
                    )
            waiting += [(part, depth + 1) for part in reversed(parts)]
            pieces += not parts
        made = self._made(self._halves, self._block.write_box.size) if pieces == 1 else ()
        return Scaled(self._output, self._waited, pieces, made)

    def _made(self, shapes: Sequence[Index3], behind: int = 0) -> tuple[NDArray[Any], ...]:
        """Return what the device has made of the block on further levels, behind so many voxels of the target."""
        ends = accumulate(map(math.prod, shapes), initial=behind)
        return tuple(self._target.view(shape, self._kind, end) for shape, end in zip(shapes, ends, strict=False))

    def _refused(self, piece: Block, depth: int, cancelled: threading.Event | None) -> str:
        """Scale a piece; return why the device has no room for it, not even while it is alone there, else nothing."""
        if not self._attempt(piece, self._engine.lanes.one(), cancelled):
            return ""
        reason = self._attempt(piece, self._engine.alone(), cancelled)
        if not reason:
            self._engine.fit.fits_alone(self._plan, depth)
        return reason

    def _attempt(self, piece: Block, resource: AbstractContextManager[Lane], cancelled: threading.Event | None) -> str:
        """Scale a piece on a lane; return how the driver says that memory ran out, or nothing."""
        import pyopencl as cl

        try:
            with self._waiting_for(resource, cancelled) as lane:
                self._carry(piece, lane, cancelled)
        except (cl.Error, DriverError, MemoryError) as error:
            reason = driver_reason(error)
            if is_out_of_memory(error):
                let_go_of(error)
                return reason
            if is_lost(error) or not self._engine.answers():
                raise self._engine.lost(reason) from error
            raise
        return ""

    def _carry(self, piece: Block, lane: Lane, cancelled: threading.Event | None) -> None:
        """Bring a piece of the block to the device and its result back."""
        arrays = self._engine.uploads(piece, self._plan)
        lane.buffers.begin(self._plan)
        try:
            small = {name: lane.upload(name, array) for name, array in arrays.items()}
            if self._engine.in_place and piece is self._block:
                with self._source.lent(), self._target.lent():
                    self._compute(piece, self._source.buffer, self._target.buffer, small, lane, cancelled).wait()
            else:
                read = piece.read_box.relative_to(self._block.read_box.start)
                written = piece.write_box.relative_to(self._block.write_box.start)
                source = lane.upload("input", self.input, read)
                whole = piece is self._block
                voxels = written.size + (sum(map(math.prod, self._halves)) if whole else 0)
                target = lane.buffers.get("output", voxels * self._kind.itemsize)
                computed = self._compute(piece, source, target, small, lane, cancelled)
                if whole:
                    lane.download(target, self._target.view((voxels,), self._kind), None, computed)
                else:
                    lane.download(target, self._output, written, computed)
        finally:
            # Whatever went wrong: no other block gets memory that the device still works on.
            lane.finish()

    def _compute(
        self,
        piece: Block,
        source: Any,
        target: Any,
        small: dict[str, Any],
        lane: Lane,
        cancelled: threading.Event | None,
    ) -> Any:
        """Give the kernels to cle's queue, behind what the lane uploads; return the event of their end."""
        uploaded = lane.uploaded()
        with self._waiting_for(TURN, cancelled):
            made = self._halves if piece is self._block else ()
            return self._engine.enqueue_after(uploaded, source, target, small, piece, self._plan, made)

    @contextmanager
    def _waiting_for(self, resource: AbstractContextManager[T], cancelled: threading.Event | None) -> Iterator[T]:
        """Enter a lock or the like, and count the seconds until it is free; a cancelled block gives up here."""
        began = time.perf_counter()
        with resource as it:
            self._waited += time.perf_counter() - began
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            yield it
