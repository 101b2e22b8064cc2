"""Networks, one file each, and the convolutions that make CPUs fast.

A network maps *normalised* images to logits; where it names no `hidden`, its hidden features are
those images. Only this room knows flax: `described` turns modules into pure functions.
"""
