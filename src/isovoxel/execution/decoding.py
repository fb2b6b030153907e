"""What reads the input of a job: with the GPU, where the plan lets it decode, else with the processor alone."""

from __future__ import annotations

from collections.abc import Callable

from isovoxel.codecs.cuda import GpuCodecError
from isovoxel.engines.base import Engine
from isovoxel.execution.events import DecodedByProcessor, Event
from isovoxel.planning.plan import Plan
from isovoxel.readers.base import ReadBox, Volume


def input_reader(volume: Volume, plan: Plan, engine: Engine, tell: Callable[[Event], None]) -> ReadBox:
    """Return what reads a volume, with a cache where the plan has one; an event tells where the GPU should, and cannot.

    Parameters
    ----------
    volume, plan
        The input of a plan, and the plan.
    engine
        On whose device chunks are decoded.
    tell
        Told of events.
    """

    def on_processor(reason: str) -> None:
        tell(DecodedByProcessor(reason))

    if plan.device.decoding and volume.by_gpu is not None:
        try:
            decoder = engine.decoder(plan, volume.by_gpu.coding)
        except (ImportError, MemoryError, GpuCodecError) as error:
            on_processor(str(error))
        else:
            if decoder is not None:
                return volume.by_gpu.reader(decoder, on_processor)
    return volume.cached(plan.cache) if volume.cached and plan.cache else volume.read
