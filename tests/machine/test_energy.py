"""Joules from a powercap tree: packages alone, wrap-around, and systems without."""

from tessera_fast.machine.energy import EnergyMeter


def write(root, name, energy, largest=10_000_000):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "energy_uj").write_text(f"{energy}\n")
    (root / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        write(tmp_path, name, 1_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    write(tmp_path, "intel-rapl:0", 3_500_000)
    write(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert meter.joules() == 2.5
    write(tmp_path, "intel-rapl:1", 500_000)  # the counter began again
    assert meter.joules() == 2.5 + 9.5


def test_unknown_where_it_cannot_be_read(tmp_path):
    assert EnergyMeter(tmp_path / "gone").joules() is None
    assert EnergyMeter(tmp_path).joules() is None
    write(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
