"""Drop-in adapters: kcenter behind other implementations' interfaces. No adapter imports its target at import time."""
