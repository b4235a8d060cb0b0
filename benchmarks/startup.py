"""How long a launch takes to say something: --cfg job, --help and a refused override, against `import hydra`.

    python benchmarks/startup.py [--rounds 7]

Whole processes, one of each in turn, so that a slow moment of the machine hits all alike. Prints the median seconds
and the median ratio to `import hydra`, which no Hydra program can beat; as the last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LAUNCH = str(Path(__file__).resolve().parent.parent / "launch.py")
COMMANDS = {
    "import hydra": ["-c", "import hydra.main"],
    "--cfg job": [LAUNCH, "--cfg", "job"],
    "--help": [LAUNCH, "--help"],
    "a misspelt key": [LAUNCH, "model.layerdop=0.1"],
    "a bad trainer argument": [LAUNCH, "trainer.args.learning_rate=fast"],
}


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(parser.parse_args().rounds)]
    figures = {
        name: {
            "seconds": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r["import hydra"] for r in rounds),
        }
        for name in COMMANDS
    }
    print(f"{'command':24} seconds   times `import hydra`")
    for name, figure in figures.items():
        print(f"{name:24} {figure['seconds']:7.2f}   {figure['ratio']:20.1f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
