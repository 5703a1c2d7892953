"""The service behind Debian's nginx and haproxy, as `docs/proxies.md` configures them.

NGINX and HAPROXY of `make test-servers` say where they are; `make test` leaves this room out.
"""
