"""What every test needs: no network, one thread, quiet libraries."""

from __future__ import annotations

from fedfm.engines.running import quiet_libraries

quiet_libraries()  # before transformers, flwr or ray are imported

import torch  # noqa: E402

torch.set_num_threads(1)
