"""A deterministic simulation: the service's own code over stores, a clock and a network of ours.

    python -m tests.simulation --seeds 0-9999
    python -m tests.simulation --seed 2439 --trace
    python -m tests.simulation --mutants

A seed makes a world: how many API workers, writers and people, what they want, how much of the
outbox is retained, which kinds of faults strike and when. The same seed does the same, step by
step, on every machine. In it run, unchanged: the engine with its lanes, batcher, numbered calls,
openings, loader and watermarks; the handshake with all that it settles; the writer with what it
does after a commit. What they are given differs:

- `loop.py`: virtual time and several processes. Between processes a seeded generator draws who runs
  next; each may be frozen, or killed between any two awaits.
- `network.py`: what is asked may be lost, late or cut off, on the way there and on the way back.
  A question that has left is executed even when whoever asked is dead.
- `redis_server.py`: the scripts by the reference model (`tests/model.py`), an append-only file
  under `appendfsync always`; a crash, an empty disk, an older copy of any moment.
  `redis_clients.py`: the interfaces of `service.redis_store` and `service.wire` to it.
- `postgres_server.py`: sessions, transactions, a row's lock, an advisory lock, the time-outs of
  sessions; a crash, an older copy. `ledger.py`: the interfaces of `service.ledger`, `record` and
  `decision` to it.
- `roles.py`: the processes, wired as `service.app` wires them; `clients.py`: people, who repeat
  what has no plain answer; `faults.py`: what strikes; `world.py`: the course of a run.
- `checks.py`: what must hold. At each step: no watermark ahead of the record, nothing trimmed or
  dropped that is nowhere else, nothing refused by PostgreSQL, no closing without a cause. At rest:
  the audit's own replay, the reference model over the journal, Redis equal to both, every answer on
  record as it was given, each request done at most once, and the order in which people were
  answered.
- `mutants.py`: twelve broken variants, each of which must be caught; `campaign.py`: many seeds.

Not simulated: SQL and Lua themselves (the suites on real servers are for these), several
partitions, dead letters, a backup's restore, and a Redis that goes back and keeps its scripts.
"""
