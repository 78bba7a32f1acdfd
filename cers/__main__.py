"""``python -m cers``: the command; ``python -m cers serve`` starts the worker without loading the command line's libraries."""

from __future__ import annotations

import sys


def main() -> int:
    if sys.argv[1:] == ["serve"]:
        from .worker import serve

        return serve()
    from .cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
