"""The sandbox's page: start a call, hold it by typing, and see what became of it."""

from .page import Sandbox as Sandbox
