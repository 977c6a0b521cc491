"""Engine "server": a running `halludecode serve` answers the requests."""
