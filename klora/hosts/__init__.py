"""Where each WebUI and pipeline is met. Nothing outside this room imports one."""
