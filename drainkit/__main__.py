"""`python -m drainkit` is the same program as `drainkit`."""

from .cli import main

main()
