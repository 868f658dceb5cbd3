"""`import cnnlib` and its first name beside `import torch`, CPU seconds of fresh interpreters in one interleaved run.

`import cnnlib` alone costs next to nothing, since names are resolved when they are used; so the second line, which also
builds a network's card and asks for `cnnlib.fit`, is the one that a user feels. Wanted: at most 1.05 times torch.

usage: python benchmarks/import_time.py [rounds]
"""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import sys

LINES = {
    "import torch": "import torch",
    "import cnnlib": "import cnnlib",
    "import torch, cnnlib": "import torch, cnnlib",
    "cnnlib.build": "import cnnlib; cnnlib.build",
}


def cpu_seconds(line: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", line], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for line in LINES.values():
        cpu_seconds(line)
    for _ in range(rounds):
        for name, line in LINES.items():
            seconds[name].append(cpu_seconds(line))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {rounds} rounds, CPU seconds")
    for name, median in medians.items():
        print(f"{name:22} {median:6.3f} s  {median / medians['import torch']:5.3f} x torch")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
