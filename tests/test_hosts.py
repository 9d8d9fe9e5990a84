import dataclasses

import jax
import numpy as np
import pytest

from regdist.scale import hosts


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    number: int


@pytest.fixture
def devices(monkeypatch):
    made = [Device(3, 0), Device(0, 1), Device(3, 2), Device(5, 3)]
    monkeypatch.setattr(jax, "devices", lambda: made)
    return made


def test_a_team_is_the_processes_with_devices(devices, monkeypatch):
    a, b, c, d = devices
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    members = hosts.team()
    assert members.devices == (a, c)
    assert members.leads == (b, a, d)
    assert (members.rank, members.size) == (1, 3)
    assert list(members.mine(8)) == [1, 4, 7]


def test_a_process_without_devices_is_told(devices, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match=r"process 1 has no device .* processes 0, 3, 5"):
        hosts.team()


def test_one_process_gathers_itself():
    members = hosts.team(jax.make_mesh((1, 1), ("a", "b")))
    assert np.array_equal(hosts.gather(members, np.arange(3)), [[0, 1, 2]])
    hosts.agree(members, b"anything", "it")


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(TypeError), hosts.replacing(path) as file:
        file.write("not bytes")  # pyright: ignore
    assert not path.exists()
    with hosts.replacing(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
