"""What of this machine isovoxel needs, and what to do where it is missing: the command ``isovoxel doctor``.

It must work where nothing else does. So its own process loads the standard library alone, and other processes find out
whatever needs a package or a driver: one that crashes or hangs ends its process, and is a finding.
"""

from collections.abc import Sequence


def is_asked(words: Sequence[str]) -> bool:
    """Return whether a command line asks for the doctor, in words that need no parser."""
    return words.count("doctor") == 1 and not set(words) - {"doctor", "--json", "--debug"}
