# SPDX-License-Identifier: Apache-2.0
"""Makes waiting threads sleep instead of spin; import it before torch, which reads this once.

On a machine that does other work too, spinning threads made training several times slower.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
