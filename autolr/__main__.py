"""`python -m autolr`: the command line."""

from autolr.cli import main

main()
