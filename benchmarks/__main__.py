"""Runs one benchmark by name: ``python -m benchmarks job --help``."""

from __future__ import annotations

import os
import sys
from importlib import import_module

NAMES = (
    "kernels",
    "limits",
    "job",
    "stage",
    "scaling",
    "peers",
    "startup",
    "script",
    "roofline",
    "aliasing",
    "writers",
    "checksums",
    "simulate",
    "workers",
    "levels",
    "budgets",
    "generations",
    "pairs",
    "encoding",
    "conformance",
    "smooth",
    "whole",
    "pipelines",
    "empty",
    "views",
    "pinned",
    "gpus",
)


def main() -> None:
    """Run the benchmark that the first argument names, with the other arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks {'|'.join(NAMES)} [--help]")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])


main()
