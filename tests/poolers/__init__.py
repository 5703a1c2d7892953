"""Tests that need a PgBouncer before PostgreSQL: `make test-servers` runs it."""
