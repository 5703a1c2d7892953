-- migrate:up

-- The order in which an event is read when it comes back to Redis, page by page: without it each
-- load sorts the whole event. Building it takes some ten seconds for ten million bookings, and
-- bookings are not written meanwhile; afterwards it costs a write some microseconds.
CREATE INDEX bookings_in_order ON bookings (event_id, seq);

-- migrate:down

DROP INDEX bookings_in_order;
