-- migrate:up

-- The user's last eight changes under an Idempotency-Key, oldest first, as Redis keeps them:
-- `<key>/<digest>/<outcome>/<seq>`, with spaces between. The column costs nothing for the rows that
-- are there; the check looks at all of them once, some seconds for ten million, under a lock.
ALTER TABLE bookings
ADD COLUMN keyed text COLLATE "C" NOT NULL DEFAULT '',
ADD CONSTRAINT bookings_keyed_are_eight_at_most
CHECK (cardinality(string_to_array(keyed, ' ')) <= 8);

-- migrate:down

-- What was kept is lost with the column: a request that is repeated with its key is then answered
-- like one without. The journal still has the keys.
ALTER TABLE bookings DROP COLUMN keyed;
