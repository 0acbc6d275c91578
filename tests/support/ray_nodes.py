"""A Ray cluster of two nodes on the loopback: `python -m support.ray_nodes`; a line on stdin kills
the second node.

Prints the address when both nodes live, and `killed` when the second one is gone. It ends with its
stdin.
"""

from __future__ import annotations

import os
import sys

from slmctl.stages.predict import ray_answers

os.environ.update(ray_answers.SWITCHES | ray_answers.LOOPBACK)  # before Ray is imported

import logging

logging.disable(logging.WARNING)

from ray.cluster_utils import Cluster  # noqa: E402


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": 100 << 20,
        },
    )
    second = cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        sys.stdout.write("killed\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
