import pytest

from regdist.scale import jobs

NAMES = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]


def work(name):
    return {"name": "/".join(name), "third": int(name[1]) / 3}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_come_in_order_and_names_are_told_as_they_are_done(tmp_path):
    told = []
    results = jobs.run(work, NAMES, tmp_path / "jobs", "f", done=told.append)
    assert results == [work(name) for name in NAMES]
    assert told == NAMES


def test_a_run_that_stopped_goes_on_and_ends_on_the_same_bytes(tmp_path):
    calls = []

    def stops(name):
        calls.append(name)
        if name == NAMES[2] and len(calls) == 3:
            raise KeyboardInterrupt
        return work(name)

    with pytest.raises(KeyboardInterrupt):
        jobs.run(stops, NAMES, tmp_path / "cut", "f")
    done = len(list((tmp_path / "cut").glob("*.json")))
    assert 2 <= done < 4
    calls[:] = [None] * 4
    assert jobs.run(stops, NAMES, tmp_path / "cut", "f") == [work(name) for name in NAMES]
    assert len(calls) == 4 + 4 - done
    jobs.run(work, NAMES, tmp_path / "whole", "f")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_more_names_are_added_to_those_that_are_there(tmp_path):
    jobs.run(work, NAMES[1:3], tmp_path, "f")
    kept = files(tmp_path)
    calls = []
    jobs.run(lambda name: calls.append(name) or work(name), NAMES, tmp_path, "f")
    assert calls == [NAMES[0], NAMES[3]]
    assert kept.items() <= files(tmp_path).items()


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    jobs.run(work, NAMES, tmp_path, "f")
    kept = files(tmp_path)
    with pytest.raises(ValueError, match="other settings or another version"):
        jobs.run(work, NAMES, tmp_path, "g")
    assert files(tmp_path) == kept


def test_names_in_a_result_keep_their_order(tmp_path):
    made = [{"beta": 1, "alpha": {"z": 1, "a": 2}}] * len(NAMES)
    assert str(jobs.run(lambda _: made[0], NAMES, tmp_path, "f")) == str(made)


def test_a_result_that_is_no_number_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        jobs.run(lambda _: float("nan"), NAMES[:1], tmp_path, "f")
    assert not list(tmp_path.glob("*.json"))


def broken(path, _):
    path.write_text(path.read_text()[:-5])
    return "broken, or cut short"


def edited(path, _):
    path.write_text(path.read_text().replace("0.333", "0.334"))
    return "not as it was written"


def of_another(path, other):
    path.write_bytes(other.read_bytes())
    return "does not hold the result of a/1"


def of_other_settings(path, other):
    jobs.run(work, NAMES[:1], other.parent / "settings", "g")
    path.write_bytes((other.parent / "settings" / path.name).read_bytes())
    return "does not hold the result of a/1 with these settings"


def of_an_older_version(path, _):
    path.write_text('{"name": "a/1", "third": 1.0}')
    return "holds no checksum"


@pytest.mark.parametrize(
    "damage", [broken, edited, of_another, of_other_settings, of_an_older_version]
)
def test_a_result_that_does_not_prove_itself_is_named_and_may_be_deleted(damage, tmp_path):
    results = jobs.run(work, NAMES, tmp_path, "f")
    first, second = (jobs._file(tmp_path, name) for name in NAMES[:2])
    whole = first.read_bytes()
    words = damage(first, second)
    with pytest.raises(ValueError, match=f"{first} .*{words}.*delete that file"):
        jobs.run(lambda name: pytest.fail("computed"), NAMES, tmp_path, "f")
    first.unlink()
    assert jobs.run(work, NAMES, tmp_path, "f") == results
    assert first.read_bytes() == whole
