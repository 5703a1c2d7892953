"""What needs servers that speak TLS, which the wheels' do not: `make test-servers` runs it."""
