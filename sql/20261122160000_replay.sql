-- migrate:up

-- `replay`: the record had gone back and was brought forward from the outbox before this epoch.
-- `replayed`: an epoch whose row was lost with the record and was read from the outbox again; what
-- its verdict was is not known.
-- The table has a row per handshake: checking it takes a moment, under a lock that readers wait for.
ALTER TABLE epochs
DROP CONSTRAINT epochs_verdict_is_known,
ADD CONSTRAINT epochs_verdict_is_known
CHECK (verdict IN ('begin', 'continue', 'rebuild', 'replay', 'replayed', 'stay_closed'));

-- migrate:down

-- Both continue at the last change of the epoch before, as far as the older release can tell.
UPDATE epochs SET verdict = 'continue' WHERE verdict IN ('replay', 'replayed');
ALTER TABLE epochs
DROP CONSTRAINT epochs_verdict_is_known,
ADD CONSTRAINT epochs_verdict_is_known
CHECK (verdict IN ('begin', 'continue', 'rebuild', 'stay_closed'));
