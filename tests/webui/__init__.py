"""The WebUI side, tested against fakes of the host."""
