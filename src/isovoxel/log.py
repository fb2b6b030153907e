"""The package's logger. Its messages have no control character, because most handlers write to a terminal."""

from __future__ import annotations

import logging

from isovoxel.terminal import plain


def _harmless(record: logging.LogRecord) -> bool:
    record.msg, record.args = plain(record.getMessage()), None
    return True


logger = logging.getLogger("isovoxel")
logger.addHandler(logging.NullHandler())  # without it, warnings would land on standard error
logger.addFilter(_harmless)
