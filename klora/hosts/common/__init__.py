"""What all WebUI hosts stand on: the protocol that they fill, the host's LoRA library, checks, the
boundary.
"""
