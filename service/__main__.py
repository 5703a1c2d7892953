"""`python -m service` is the `onsale` command, for a checkout without its console script."""

from service.cli import main

main()
