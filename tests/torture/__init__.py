"""The fault suite: real servers, real faults, and every answer held against the record.

`people` sell and buy, and repeat each operation under its key until they know what it came to;
`history` is what they asked and were told; a `test_*.py` has one family of faults done to them
meanwhile; `sale` then holds both stores to `onsale reconcile` and `onsale audit`, and every answer
to the reference model (`checker`). Each family has a negative control: the same sale on a service
with one protection taken out (`broken`), in which the same checks must find something.

`faults` lists what is done and how often, `scores` collects what came of it, and
`python -m tests.torture` runs it all and writes docs/reliability.md.
"""
