-- migrate:up

-- Changes that PostgreSQL refused and an operator set aside, and later changes of the same event.
-- An event that has a row here is frozen: it is neither booked nor cancelled until `onsale
-- deadletters retry` has put all of its letters into the journal. The chain of hashes runs over
-- journal and dead_letters together, by seq: a row is in one of the two.
CREATE TABLE dead_letters (
    partition integer NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    event_id bigint NOT NULL,
    user_id text COLLATE "C",
    details text,
    hash bytea NOT NULL,
    reason text NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letters_pkey PRIMARY KEY (partition, seq)
);

-- Asked of every batch that goes on record: is one of its events frozen?
CREATE INDEX dead_letters_of_event ON dead_letters (event_id, seq);

-- migrate:down

-- Without its letters the journal has gaps that nothing explains.
DO $$
BEGIN
    IF EXISTS (SELECT FROM dead_letters) THEN
        RAISE EXCEPTION 'there are dead letters: onsale deadletters retry each event first';
    END IF;
END $$;

DROP TABLE dead_letters;
