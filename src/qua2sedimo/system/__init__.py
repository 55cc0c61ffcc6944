"""The environment: machine, versions, other libraries' output, progress, Ctrl-C."""
