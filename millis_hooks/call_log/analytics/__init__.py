"""Figures over a period of calls: counts, costs, lengths and latencies, and how handlers did."""
