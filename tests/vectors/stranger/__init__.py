"""Attribution once more, in plain Python, from docs/attribution.md and docs/exact-arithmetic.md.

Nothing here imports the code that is checked, nor torch, nor numpy: the standard library and BLAKE3. It is slow, and short: read it
beside the pages, in this order.

``arithmetic``  binary32, the 14-bit grid, products, sums
``functions``   exponential, logarithm, cosine, the other sums
``linear``      layers of 7-bit weights with an adapter beside them, forward and backward
``attention``   rotation, causal attention, forward and backward
``model``       token ids -> loss -> x, u, dz, dh of every module
``whitening``   those -> gradients -> moments -> bases -> weights -> whitened coordinates
``index``       whitened coordinates -> rows, leaves, root, proofs; erased rows
``scoring``     whitened coordinates of an answer -> integers -> scores -> squared cosines -> shares
``copies``      records -> bands, leaders
``sketch``      whitened coordinates -> rows of a fixed size
``spans``       records, an answer -> maximal matching stretches
``steps``       all of it for the inputs of ``attribution.json``

`python -m tests.vectors.stranger` prints what it computes; `python -m tests.vectors --check-attribution FILE` compares.
"""
