"""What tests share."""

LONG = 1800  # seconds: what takes longer hangs, however busy the machine is
