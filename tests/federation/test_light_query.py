"""A site that is asked who it is imports no torch: across machines its answer is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from federation_helpers import tiny

import fedfm

ANSWER = """
import json, sys
from pathlib import Path
from flwr.app import Context, RecordDict
from fedfm.federation.flower_private import take_identity
take_identity()
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_cards, write_query
query = write_query(Path(sys.argv[1]).read_text(), 1)
for site in ("medical-1", "finance-1", "ner-1"):
    context = Context(1, 1, {"site": site}, RecordDict(), {}, 0)
    (card,) = read_cards(app(query, context))
    print(card.site, card.num_examples("train"))
print("heavy:", [name for name in ("torch", "transformers", "peft", "sklearn") if name in sys.modules])
"""


def test_the_card_of_a_site_needs_no_torch(tmp_path):
    import json

    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny(tmp_path).to_dict()), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(fedfm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(file)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["medical-1 6", "finance-1 6", "ner-1 6", "heavy: []"]
