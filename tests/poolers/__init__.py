"""What needs a PgBouncer before PostgreSQL: `make test-servers` runs it."""
