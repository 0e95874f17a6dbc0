"""`python -m mentatlab` is the command line."""

from mentatlab.cli import main

main()
