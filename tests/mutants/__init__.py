"""Checks taken out one at a time, each with the tests that have to notice: see `__main__.py`."""
