"""From specs to files: networks, tasks, the queue, and what it will cost."""
