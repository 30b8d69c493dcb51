"""The tests find `adatp`, `adatp_kernels` and `bench` in a plain checkout, too: pytest puts this folder on its path."""

import bench  # noqa: F401
