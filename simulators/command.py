"""What every verb of the command line shares: exit statuses, one-sentence errors, JSON as the last line.

Exit status: 0 done (also after SIGTERM and Ctrl-C), 1 failed with the reason on stderr in a sentence, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from optimizer.errors import AdloopError
from optimizer.signals import terminable


def execute(work: Callable[[], int], name: str = "adloop") -> int:
    """Run a verb; returns its exit status, with expected errors told in a sentence that begins with `name`. Others are
    bugs and stay tracebacks."""
    try:
        with terminable():
            status = work()
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Who reads our output has had enough (`| head`). Nothing must be written to it while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (AdloopError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return status


def answer(figures: dict[str, Any], show: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    """Print a verb's figures: as one JSON object on the last line, or as a person reads them."""
    print(json.dumps(figures, allow_nan=False) if as_json else show(figures))
    return 0


def refuse_failed(failed: Sequence[Mapping[str, Any]], runs: int) -> None:
    """Raises AdloopError, for exit status 1, where of `runs` some have `failed`: what the others gave has been told."""
    if failed:
        first = failed[0]
        raise AdloopError(
            f"{len(failed)} of {runs} runs failed, the first of them {first['name']}, seed {first['seed']}: "
            f"{first['why']}"
        )


def line(record: object) -> None:
    """One JSON object on one line of stdout, in UTF-8 whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
