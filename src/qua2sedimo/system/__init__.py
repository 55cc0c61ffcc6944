"""What surrounds the program: the machine, versions, other libraries' output, progress, Ctrl-C."""
