"""Hands each call that has ended to a workflow of n8n, signed, and again until n8n takes it.

    N8N_WEBHOOK_URL=https://n8n.example.com/webhook/calls N8N_SECRET=... \\
        millis-hooks dev examples/forward_to_n8n.py
"""

from __future__ import annotations

import os

from millis_hooks import MillisHooks, forward

#: Without the variables: n8n on this machine, with a secret to try it.
N8N_WEBHOOK_URL = os.environ.get("N8N_WEBHOOK_URL", "http://127.0.0.1:5678/webhook/calls")
N8N_SECRET = os.environ.get("N8N_SECRET", "a secret to try it with")

hooks = MillisHooks()
hooks.on_end_of_call(name="n8n")(forward(N8N_WEBHOOK_URL, secret=N8N_SECRET))
