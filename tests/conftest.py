"""Settings that all tests share."""

from hypothesis import settings

# Tests never depend on time; a slow machine is not a failure.
settings.register_profile("isovoxel", deadline=None, max_examples=60)
settings.load_profile("isovoxel")
