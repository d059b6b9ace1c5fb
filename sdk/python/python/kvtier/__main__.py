"""`python -m kvtier serve`: the daemon, with the options of `kvtier serve`."""

import signal
import sys

from ._kvtier import _run


def main() -> int:
    # The daemon has its own way to end; the interpreter's would raise KeyboardInterrupt behind it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code, message = _run(sys.argv[1:])
    if message:
        print(f"kvtier: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
