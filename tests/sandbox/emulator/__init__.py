"""The emulator, as Millis' own clients see it; the Web SDK is in tests/browser."""
