-- migrate:up

-- What a partition stays closed for, where a range can be named: changes that were made and that
-- the record does not have. `confirmed_at`: an operator has read it, and it may be gone on without.
-- The table has a row per handshake: checking it takes a moment, under a lock that readers wait for.
ALTER TABLE epochs
ADD COLUMN lost_epoch bigint,
ADD COLUMN lost_first bigint,
ADD COLUMN lost_last bigint,
ADD COLUMN confirmed_at timestamptz,
ADD CONSTRAINT epochs_loss_is_a_range CHECK (
    (lost_epoch IS NULL) = (lost_first IS NULL)
    AND (lost_first IS NULL) = (lost_last IS NULL)
    AND lost_epoch > 0 AND lost_first > 0 AND lost_first <= lost_last
),
ADD CONSTRAINT epochs_loss_keeps_closed CHECK (lost_epoch IS NULL OR verdict = 'stay_closed'),
ADD CONSTRAINT epochs_confirmed_is_a_loss CHECK (confirmed_at IS NULL OR lost_epoch IS NOT NULL);

-- migrate:down

-- What was confirmed is forgotten: the older release does not look for it.
ALTER TABLE epochs
DROP CONSTRAINT epochs_loss_is_a_range,
DROP CONSTRAINT epochs_loss_keeps_closed,
DROP CONSTRAINT epochs_confirmed_is_a_loss,
DROP COLUMN lost_epoch,
DROP COLUMN lost_first,
DROP COLUMN lost_last,
DROP COLUMN confirmed_at;
