"""Published tables beside ours: what a paper prints, the experiments that ask the same, and how far both agree."""
