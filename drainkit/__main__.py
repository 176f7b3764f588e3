"""`python -m drainkit` is the same program as `drainkit`."""

from .cli.main import main

main()
