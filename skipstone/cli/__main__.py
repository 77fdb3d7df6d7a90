"""`python -m skipstone.cli`."""

from . import main

main()
