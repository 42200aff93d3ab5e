"""What runs on a node of a cluster: ``python -m nemo_cdt.launch.node CONFIG``."""
