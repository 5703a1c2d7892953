"""The parts of `loadtests/bench.py`: what is sent, to whom, what it costs, and whether it is true.

`traffic` says what a request is; `wrk` and `sender` send it. `onsale` and `baselines` are what it
is sent to, processes of their own in a directory that is gone afterwards; `cpu` and `lag` watch
them. `variants` has a class for each thing that is measured, `groups` says which are measured next
to each other and what is hoped for; `stage` brings up what a group needs. `rounds` measures, and
holds the record against the answers. `measures` does the arithmetic, `report` and `plot` tell it.
"""
