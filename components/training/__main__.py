"""One training job from a file, in this process or as one of torchrun's workers.

    torchrun --nproc-per-node 2 -m components.training job.yaml

The file holds the fields of `TrainingJob`: family, model, train, data, run. Prints a line for each metric row of rank 0; exits with 2 on
a user's mistake.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from components.config import read_yaml
from components.errors import UserError
from components.training.job import TrainingJob, execute
from components.training.outlet import Outlet, Row, launched_by_torchrun, torchrun


def _show(row: Row) -> None:
    numbers = ("step", "samples_per_second", *(name for name in row if name.startswith(("loss", "held_out"))))
    print("  ".join(f"{name} {row[name]:.5g}" for name in numbers), flush=True)


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) != 1:
            raise UserError(f"{len(arguments)} arguments given, expected one: the YAML or JSON file of a training job")
        job = TrainingJob.parse(read_yaml(arguments[0]), arguments[0])
        with torchrun(_show) if launched_by_torchrun() else nullcontext(Outlet(show=_show)) as outlet:
            execute(job, outlet)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
