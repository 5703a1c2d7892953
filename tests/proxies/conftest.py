"""The service that all tests of this directory stand behind."""

from tests.http.conftest import service

__all__ = ["service"]
