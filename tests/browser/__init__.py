"""The dashboard in a real browser: Debian's Chromium, driven by Playwright.

Pages are opened as by an operator, on a real server with hostile calls.
"""
