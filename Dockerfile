# One image, several roles: `onsale api` (the default), `writer`, `migrate up`, or `up` for a whole sale.
#
#   docker build -t onsale .
#   docker run --init --stop-timeout 120 -e ONSALE_ALLOW_REMOTE=1 -p 127.0.0.1:3000:3000 -v onsale:/data onsale up
#
# `up` brings its own Valkey and PostgreSQL and keeps them in /data. compose.yaml runs the roles apart.

FROM python:3.11-slim-bookworm AS build

WORKDIR /src

# Made where it will run, since its scripts name their Python by path; and without a pip of its own.
# Wheels alone: what would have to be compiled is refused here, not worked around.
COPY requirements/run.txt requirements/
RUN python -m venv --without-pip /opt/onsale \
 && pip --python /opt/onsale/bin/python install --no-cache-dir --only-binary=:all: \
      --require-hashes -r requirements/run.txt

COPY pyproject.toml README.md ./
COPY service service
COPY lua lua
COPY sql sql
RUN /opt/onsale/bin/python -m hatchling build -t wheel -d /wheel \
 && pip --python /opt/onsale/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl

FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="Onsale" \
      org.opencontainers.image.description="A booking service for the moment when everybody wants a ticket." \
      org.opencontainers.image.version="0.1.0"

# PostgreSQL refuses root, and a user whom the system does not know.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin onsale \
 && install --directory --owner=onsale --group=onsale --mode=0700 /data

COPY --from=build /opt/onsale /opt/onsale

# 127.0.0.1 would be reached by nobody outside of the container. What this image does not say is
# ONSALE_ALLOW_REMOTE=1: there is no authentication, so whoever publishes the port has to.
ENV PATH=/opt/onsale/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ONSALE_DATA_DIR=/data \
    ONSALE_DRAIN_SECONDS=10 \
    HOST=0.0.0.0 \
    PORT=3000

WORKDIR /opt/onsale
USER 10001:10001

# With a read-only root these two stay writable: /data, and /tmp for the sockets of `up`.
VOLUME ["/data"]
EXPOSE 3000
STOPSIGNAL SIGTERM

# "Healthy" is "bookings are taken". The writer serves no HTTP and has to do without.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["onsale", "health"]

ENTRYPOINT ["onsale"]
CMD ["api"]
