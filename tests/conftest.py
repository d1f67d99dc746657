"""For all tests."""

from __future__ import annotations

import os

# Before anything is imported: no test reads or writes the cache of whoever runs it.
os.environ["KLORA_CACHE"] = ""
