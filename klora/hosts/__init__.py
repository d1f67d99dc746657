"""Where each WebUI and pipeline is met. Nothing outside this room imports one.

From the bottom up: ``common`` (what all stand on), an adapter for each host, ``which`` (which host this is),
``webui`` (what the user of a WebUI meets: accordion, jobs, infotext, routes).
"""
