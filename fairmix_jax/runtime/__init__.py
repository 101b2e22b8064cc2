"""The ground of the other rooms: processes, devices, signals, errors, console, files, members."""
