"""Tests; see docs/architecture.md."""
