"""Would Kubernetes place these pods, and on which devices: answered without a cluster.

`simulation` has the sentence, `values` the nouns that go in and `answer` those that come out.
It follows the scheduler where that decides alone whether there is room: claims are allocated
first-fit with backtracking, in the order of slices and devices. Which of several nodes a pod
gets is the scheduler's taste, and is not predicted: the first is taken.
"""
