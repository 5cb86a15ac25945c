"""The dashboard in a real browser: Debian's Chromium, driven by Playwright.

A page is opened as an operator would, on a server of its own, over calls that Millis never sent.
"""
