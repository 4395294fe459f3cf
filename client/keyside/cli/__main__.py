"""``python -m keyside.cli``: the ``keyside`` command where no script is installed."""

from keyside.cli import main

main()
