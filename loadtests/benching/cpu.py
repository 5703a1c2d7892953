"""How much CPU time processes have used, from /proc: a tree each, with the children that it reaped.

Linux only, in ticks of 10 ms: enough for rounds of seconds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Parent and used seconds of every process, and the machine's seconds: not idle, and all.

    Stolen ones are not idle: somebody else had the processor.
    """

    parents: Mapping[int, int]
    used_s: Mapping[int, float]
    busy_s: float
    all_s: float

    def of(self, roots: Sequence[int]) -> float:
        """Return the seconds that these processes and all below them have used."""
        wanted, grown = set(roots), True
        while grown:
            below = {pid for pid, parent in self.parents.items() if parent in wanted}
            grown = not below <= wanted
            wanted |= below
        return sum(self.used_s.get(pid, 0.0) for pid in wanted)


def snapshot(proc: Path = Path("/proc")) -> Snapshot:
    """Read all processes once."""
    parents, used = {}, {}
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            # The name in parentheses may hold anything; the numbers follow the last one.
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(directory.name)] = int(fields[1])
        # utime, stime, and those of children that ended and were waited for.
        used[int(directory.name)] = sum(map(int, fields[11:15])) * _TICK_S
    machine = [
        int(word) * _TICK_S for word in (proc / "stat").read_text().split("\n")[0].split()[1:]
    ]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user.
    return Snapshot(parents, used, sum(machine[:8]) - sum(machine[3:5]), sum(machine[:8]))
