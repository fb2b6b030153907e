"""pyclesperanto-prototype behind the seam of `isovoxel.engines.clesperanto`: arrays and queue are pyopencl's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isovoxel.engines.contexts import queue_of
from isovoxel.geometry.box import Index3
from isovoxel.geometry.grid import Float3

TRANSFERS = 8
"""Matrices on their way to the device at a time, for two blocks in two halves each, and as many kept."""


class Prototype:
    """pyclesperanto-prototype; importing it takes half a second."""

    package = "pyclesperanto-prototype"
    fixed_shapes = False

    def __init__(self) -> None:
        import pyclesperanto_prototype as cle

        self._cle = cle
        self.version = str(cle.__version__)
        self._devices: dict[Any, Any] = {}
        self._transfers: deque[Any] = deque(maxlen=TRANSFERS)

    def queue(self, handle: Any) -> Any:
        """Return the queue of the context in which a device's arrays lie. The caller has the turn."""
        return queue_of(handle)

    def scale(
        self,
        queue: Any,
        source: tuple[Any, Index3],
        result: tuple[Any, Index3],
        factor: Float3,
        matrix: NDArray[np.float64] | None,
        *,
        linear: bool,
    ) -> None:
        """Give the scaling of a float32 array to the queue; see `isovoxel.engines.clesperanto.Clesperanto`."""
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        given, made = (OCLArray(queue, shape, np.float32, data=buffer) for buffer, shape in (source, result))
        with self._current(queue):
            if matrix is None:
                fz, fy, fx = factor
                self._cle.scale(
                    given, made, factor_x=fx, factor_y=fy, factor_z=fz, centered=False, linear_interpolation=linear
                )
            else:
                self._cle.affine_transform(given, made, transform=matrix, linear_interpolation=linear)

    @contextmanager
    def _current(self, queue: Any) -> Iterator[None]:
        """Let cle use a queue, raise where an image cannot be made, and not wait for the device.

        By itself cle makes a new context each time it goes from one device to another, in which nothing works that was
        made in the old one. It takes any reason why an image cannot be made, a lack of memory too, for one that will
        stay: it warns, and goes on with nearest. And it waits until its matrix is on the device, behind all that the
        queue has to do before. A caller's own choice of a device is put back.
        """
        from pyclesperanto_prototype._tier0._backends import Backend
        from pyclesperanto_prototype._tier0._device import Device, _current_device

        if queue not in self._devices:
            self._devices[queue] = Device(queue.device, queue.context, queue)
        before, _current_device._instance = _current_device._instance, self._devices[queue]  # noqa: SLF001 - no other way
        backend = Backend.get_instance().get()
        backend.empty_image_like = lambda array, _: _image(queue.context, array.shape)
        backend.from_array = lambda matrix: self._matrix_on_device(queue, matrix)
        try:
            yield
        finally:
            del backend.empty_image_like, backend.from_array
            _current_device._instance = before or self._devices[queue]  # noqa: SLF001

    def _matrix_on_device(self, queue: Any, matrix: NDArray[np.float32]) -> Any:
        """Return cle's array of its matrix, which the queue copies before it comes to what uses it."""
        import pyopencl as cl
        from pyclesperanto_prototype._tier0._pycl import OCLArray

        buffer = cl.Buffer(queue.context, cl.mem_flags.READ_ONLY, matrix.nbytes)
        # pyopencl waits for a transfer whose event nobody keeps; with as many kept, the oldest has come to its end.
        self._transfers.append(cl.enqueue_copy(queue, buffer, matrix, is_blocking=False))
        return OCLArray(queue, matrix.shape, matrix.dtype, data=buffer)


def _image(context: Any, shape: Index3) -> Any:
    """Return an image of float32, by the constructor that stays in pyopencl."""
    import pyopencl as cl
    from pyclesperanto_prototype._tier0._pycl import _OCLImage

    format_ = cl.ImageFormat(cl.channel_order.R, cl.channel_type.FLOAT)
    image: Any = cl.create_image(context, cl.mem_flags.READ_WRITE, format_, shape=tuple(reversed(shape)))
    image.dtype, image.num_channels = np.float32, 1
    return _OCLImage(image)
