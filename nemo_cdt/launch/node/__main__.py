"""``python -m nemo_cdt.launch.node CONFIG``, which a scheduler starts once on every node."""

from nemo_cdt.launch.node.run import main

if __name__ == "__main__":
    main()
