"""What a run costs before it runs: FLOPs, memory and time of every layout, in pure Python."""
