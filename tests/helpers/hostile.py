"""What a small file that asks for much is held to."""

import re

import fuzz
from tessera_fast.errors import WeightsError
from tessera_fast.weights import load_weights


def refused(tmp_path, data, message, suffix="pt"):
    """load_weights refuses the file, within the limits of `fuzz` and in 700 characters."""
    path, said = tmp_path / f"x.{suffix}", []

    def read(data):
        path.write_bytes(data)
        try:
            load_weights(path)
        except WeightsError as error:
            said.append(str(error).replace(str(path), ""))
            raise

    outcome = fuzz.Outcome()
    fuzz.one(0, 0, lambda rng: data, read, outcome)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.refused == {"WeightsError": 1}, outcome
    assert len(said[0]) < 700
    assert re.search(message, said[0]), said[0]
