"""Problem files: what is read, what is refused, and mutants beside a simple-minded judge."""

import collections
import contextlib
import csv
import io
import json
import math
import random
import re

import jax.numpy as jnp
import numpy as np
import pytest

from regdist.problems import load

CSV = "outcome,reward,count,label\na,1,2,x\nb,0.5,1,y\nc,-inf,1,x\n"


def test_files(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    task = load(path)
    assert task.outcomes == ("a", "b", "c")
    assert np.allclose(jnp.exp(task.bandit.log_ref), [0.5, 0.25, 0.25])
    assert task.bandit.label.tolist() == [0, 1, 0]
    rows = [
        {"outcome": "a", "reward": 1, "log_reference": -800},
        {"outcome": "b", "reward": 0, "log_reference": 0.0},
    ]
    lines = tmp_path / "mine.jsonl"
    lines.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert load(lines).bandit.log_ref.tolist() == [-800.0, 0.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", CSV.replace("0.5", "half"), "line 3, field 'reward': not a number: 'half'"),
        ("a.csv", CSV.replace("b,0.5,1", "b,0.5,-1"), "line 3, field 'count'"),
        ("a.csv", CSV.replace("b,0.5", "b,nan"), "line 3, field 'reward'"),
        ("a.csv", CSV.replace("b,0.5", ",0.5"), "line 3, field 'outcome'"),
        ("a.csv", CSV.replace("count", "often"), "field 'often': no outcome comes twice"),
        ("a.csv", CSV + "d,1,1,x,extra\n", "line 5: 5 cells under a header of 4"),
        ("a.csv", CSV + "d,1\n", "line 5: 2 cells under a header of 4"),
        ("a.csv", "", "no outcomes"),
        ("a.csv", "outcome,reward,count\na,1,0\n", "field 'count': all counts are 0"),
        ("a.csv", "outcome,reward,reference\na,1,0.5\nb,0,0.4\n", "sum to 1"),
        ("a.csv", "outcome,reward,reference,count\na,1,0.5,1\n", "got 'reference', 'count'"),
        ("a.jsonl", '{"outcome": "a", "reward": 1, "count": 1}\n{"outcome"\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a JSON array; write one object a line"),
        ("a.jsonl", '[\n{"outcome": "a"}\n]', "line 1: a JSON array"),
        ("a.jsonl", '"a"', "line 1: a JSON object is wanted; got 'a'"),
        (
            "a.jsonl",
            '{"outcome": "a", "reward": 1, "log_reference": 2}\n',
            "field 'log_reference': 2",
        ),
        ("a.txt", "", "ends in .csv or .jsonl"),
    ],
)
def test_a_wrong_file_names_its_line_and_field(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path)


def jsonl(*rows):
    return "\n".join(map(json.dumps, rows))


def table(task):
    """Outcome to reward, answer and probability."""
    b, answers = task.bandit, task.answers
    columns = b.reward.tolist(), b.label.tolist(), np.exp(b.log_ref).tolist()
    rows = zip(task.outcomes, *columns, strict=True)
    return {name: (r, answers[i], pytest.approx(q, rel=1e-12)) for name, r, i, q in rows}


SAMPLES = [{"outcome": o, "reward": o == "a", "step": 7} for o in "abaa"]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        # the same outcome again: counts add up, and a line without a count is one sample
        ("a.csv", "outcome,reward,count\na,1,2\nb,0,5\na,1.0,1\n", {"a": (1, "a"), "b": (0, "b")}),
        ("a.jsonl", jsonl(*SAMPLES), {"a": (1, "a"), "b": (0, "b")}),
        ("a.csv", "outcome,reward\na,1\nb,0\n", {"a": (1, "a"), "b": (0, "b")}),
        # rewards of verifiers
        ("a.csv", "outcome,reward\na,TRUE\nb, False\n", {"a": (1, "a"), "b": (0, "b")}),
        ("a.csv", "outcome,reward\na,-inf\nb,1e-3\n", {"a": (-math.inf, "a"), "b": (0.001, "b")}),
        ("a.jsonl", '{"outcome": "a", "reward": "1."}\n', {"a": (1, "a")}),
        # names stay as they are
        *(
            ("a.jsonl", jsonl({"outcome": text, "reward": 1}), {text: (1, text)})
            for text in (
                "[/bold]",
                r"$\frac$",
                "<script>",
                "a\nb",
                "é",
                "é",
                " ",
                "😀",
                "x" * 10**6,
            )
        ),
        ("a.csv", 'outcome,reward\n"a,\n""b""",1\n', {'a,\n"b"': (1, 'a,\n"b"')}),
        ("a.jsonl", '{"outcome": 7, "reward": 1, "label": true}', {"7": (1, "true")}),
        # a mark at the beginning, blank lines, all ends of lines
        ("a.csv", "\ufeff\noutcome,reward\r\n\r\na,1\r  \rb,0", {"a": (1, "a"), "b": (0, "b")}),
        ("A.CSV", "outcome,reward\na,1\n", {"a": (1, "a")}),
        ("a.jsonl", '\ufeff{"outcome": "a", "reward": 1}\n\t\r\n', {"a": (1, "a")}),
        # one prompt, with ids of its samples; and the answer that is right
        ("a.csv", "id,Prompt,outcome,reward\n1,p,a,1\n2,p,b,0\n", {"a": (1, "a"), "b": (0, "b")}),
        ("a.csv", "id,outcome,reward,answer\n1,a,1,4\n1,b,0,4\n", {"a": (1, "a"), "b": (0, "b")}),
    ],
)
def test_a_file_is_read(tmp_path, name, text, wanted):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    found = table(load(path))
    assert {k: v[:2] for k, v in found.items()} == wanted
    odds = {"a.csv": (3 / 8, 5 / 8), "a.jsonl": (3 / 4, 1 / 4)}
    if "count" in text or "step" in text:
        assert [q for *_, q in found.values()] == list(odds[name])


GOOD = {"outcome": "a", "reward": 1, "count": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "outcome,reward\na,1\na,0\n", "line 3, field 'reward': .* 'a' of line 2 again"),
        (
            "a.csv",
            "outcome,reward,label\na,1,x\nb,1,x\na,1,y\n",
            "line 4, field 'label': .* line 2",
        ),
        (
            "a.csv",
            "outcome,reward,reference\na,1,0.5\na,1,0.5\n",
            "line 3, field 'outcome': .* line 2",
        ),
        ("a.csv", "outcome,reward,label\na,1,x\nb,1,\n", "line 3, field 'label': empty"),
        ("a.jsonl", jsonl({**GOOD, "label": "x"}, GOOD), "line 2, field 'label': missing"),
        ("a.jsonl", '{"outcome": NaN, "reward": 1}', "field 'outcome': NaN is not a text"),
        ("a.jsonl", '{"outcome": ["a"], "reward": 1}', "field 'outcome': a list is not a text"),
        ("a.jsonl", '{"outcome": "a", "reward": {"x": 1}}', "'reward': not a number: an object"),
        ("a.jsonl", '{"outcome": "a", "reward": 1, "x": {"b": 1, "b": 2}}', "'b': given twice"),
        ("a.jsonl", jsonl({**GOOD, "outcome": "\ud800"}), "line 1, .*half of a surrogate pair"),
        ("a.jsonl", jsonl({**GOOD, "outcome": "a\0"}), "line 1, field 'outcome': .* NUL"),
        ("a.csv", "outcome,reward\na,1\nb\0,1\n", "line 3: not UTF-8 text .a NUL"),
        ("a.jsonl", '{"outcome": "a", "reward": -1e999}', "more than a float can hold"),
        ("a.csv", "outcome,reward,count\na,1,1e-999\nb,1,1\n", "line 2, .*less than a float"),
        ("a.csv", "outcome,reward,count\na,1,1e308\na,1,1e308\n", "sum is more than a float"),
        ("a.csv", "outcome,reward,count\na,1,true\n", "field 'count': not a number: 'true'"),
        ("a.jsonl", '{"a":' * 10**5, "line 1: nested too deeply"),
        ("a.csv", "outcome,reward\n" + "x" * 200_000 + ",1\n", "line 2: .*limit.*a .jsonl file"),
        ("a.csv", 'outcome,reward\na,1\n"b,0\nc,1\n', "line 3: not CSV"),
        ("a.csv", "outcome,reward\n", "no outcomes"),
        ("a.jsonl", '{"outcome":\n"a"}', "line 1: not JSON .*; a whole object on each line"),
        ("a.csv", "outcome\treward\na\t1,5\n", r"line 1: .* separated by '\\t'"),
        ("a.csv", "outcome, reward\na, 1\n", "no field 'reward'; .*Rename ' reward' to 'reward'"),
        ("a.csv", "outcome,reward,cuont\na,1,2\n", "field 'cuont': is 'count' meant"),
        ("a.csv", "outcome,reward,answer\na,1,2\nb,1,3\n", "field 'answer': is 'label' meant"),
        ("a.csv", "outcome,reward,answer,labels\na,1,4,x\n", "field 'labels': is 'label' meant"),
        ("a.csv", "outcome,reward,taskID\na,1,2\nb,1,3\n", "line 3, field 'taskID': '3', but '2'"),
        ("a.jsonl", jsonl({**GOOD, "input": [1]}, {**GOOD, "outcome": "b"}), "missing, but a list"),
        ("a.jsonl", jsonl({"task_id": 1, "completion": "a", "passed": True}), "HumanEval: keep"),
    ],
)
def test_a_file_that_would_be_misread_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}") as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("depth", [100, 500, 900, 960, 980, 1000, 10_000])
def test_a_prompt_may_be_nested_as_deeply_as_it_can_be_read(tmp_path, depth):
    path = tmp_path / "a.jsonl"
    nested = '{"a": [' * (depth // 2) + "]}" * (depth // 2)
    lines = (f'{{"outcome": "{name}", "reward": 1, "prompt": {nested}}}' for name in "ab")
    path.write_text("\n".join(lines))
    if depth < 900:
        assert len(load(path).outcomes) == 2
    else:  # how deep Python reads depends on who calls
        with contextlib.suppress(ValueError):
            load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"outcome,reward,count\n\xff\xfe,1,1\n", "line 2: not UTF-8"),
        ("outcome,reward\na,1\n".encode("utf-16"), "line 1: not UTF-8 text but UTF-16"),
        ("outcome,reward\na,1\n".encode("utf-16-le"), "line 1: not UTF-8"),
        (b"PAR1\x15\x04\x15", "no outcomes|not UTF-8"),
    ],
)
def test_text_that_is_not_utf8(tmp_path, data, message):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_file_whose_name_is_no_text(tmp_path):
    path = tmp_path / "a\udcff.csv"
    path.write_text("outcome,reward\na,1\n")
    with pytest.raises(ValueError, match=r"a\\udcff.csv.*a file whose name is UTF-8"):
        load(path)


def test_references_that_do_not_sum_to_1(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("outcome,reward,log_reference,label\na,1,-900,x\nb,0,-901,y\nc,1,-900,x\n")
    share = 1 / (2 + math.exp(-1))
    task = load(path, normalize=True)
    laws = {"a": (1, "x"), "b": (0, "y"), "c": (1, "x")}
    assert {k: v[:2] for k, v in table(task).items()} == laws
    assert np.allclose(np.exp(task.bandit.log_ref), [share, share * math.exp(-1), share])
    assert "sum to e^-899.1" in task.about
    task = load(path, rest=0.25)
    assert table(task)["(rest)"][:2] == (0.25, "(rest)")
    assert np.array_equal(task.bandit.log_ref, [-900, -901, -900, 0])
    path.write_text("outcome,reward,reference\na,1,0.5\nb,0,0.3\n")
    assert np.allclose(np.exp(load(path, rest=-math.inf).bandit.log_ref), [0.5, 0.3, 0.2])
    assert np.allclose(np.exp(load(path, normalize=True).bandit.log_ref), [0.625, 0.375])
    path.write_text("outcome,reward,reference\na,1,0.5\nb,0,0.5\n")
    assert np.allclose(np.exp(load(path, rest=0.0).bandit.log_ref), [0.5, 0.5, 0])
    path.write_text("outcome,reward,reference\na,1,0\nb,0,0\n")
    with pytest.raises(ValueError, match="every outcome has probability 0"):
        load(path, normalize=True)


# Mutants. The judge knows no name but the exact ones and gives up where anything is strange; what
# it cannot read must be refused, and what is not refused must be what it reads.

SEEDS = {
    "counts.csv": "outcome,reward,count,label,prompt\n"
    'a,1,2,x,p\nb,0.5,1,y,p\nc,-inf,1,x,p\n"d, e",0,3,z,p\na,1,4,x,p\n',
    "samples.jsonl": jsonl(
        *(
            {"id": 3, "outcome": o, "reward": r, "label": label}
            for o, r, label in [("a", True, "4"), ("b", 0, "5"), ("c", 1.0, "4"), ("b", 0, "5")]
        )
    ),
    "logs.jsonl": jsonl(
        *(
            {"outcome": o, "reward": r, "log_reference": q}
            for o, r, q in [
                ("x = 1", 0.25, math.log(0.5)),
                ("x = 2", -2, -1e3),
                ("x = 3", 1, math.log(0.5)),
            ]
        )
    ),
    "shares.csv": "reward,reference,outcome\n1,0.25,a\n0,0.5,b\n1e-3,0.25,c\n",
}
WORDS = [
    *("1", "0", "-1", "2e0", "true", "nan", "inf", "-inf", "1_0", "0x1", "1e999", "", " ", "null"),
    *('"', ",", "\n", "\r", "\0", ";", "{", "[]", "é", "\u0661", "\u2028", "\ufeff", "\ud7ff"),
    *(
        "[/bold]",
        r"$\frac$",
        "<b>",
        "a",
        "x",
        "p",
        "label",
        "count",
        "\\u0000",
        "\\ud800",
        "9" * 400,
    ),
]


def mutant(rng, name):
    """A seed after one or two mishaps, as bytes."""
    lines = SEEDS[name].split("\n")
    for _ in range(rng.randint(1, 2)):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        what, line, at = rng.randrange(9), lines[i], rng.randrange(len(lines[i]) + 1)
        marks = [m.start() for m in re.finditer(r"[,:{}]|$", line)]
        if what == 0:
            lines.insert(j, line)
        elif what == 1:
            lines[i], lines[j] = lines[j], line
        elif what == 2:
            del lines[i:j]
        elif what == 3:  # two cells of one line, or of two
            a, b = re.split(r"([,:])", line), re.split(r"([,:])", lines[j])
            k = rng.randrange(0, min(len(a), len(b)), 2)
            a[k], b[k] = b[k], a[k]
            lines[i], lines[j] = "".join(a), "".join(b)
        elif what == 4:
            lines[i] = line[:at] + rng.choice(WORDS) + line[at:]
        elif what == 5:  # a whole cell
            k = rng.randrange(len(marks))
            start = marks[k - 1] + 1 if k else 0
            lines[i] = line[:start] + rng.choice(WORDS) + line[marks[k] :]
        elif what == 6:
            lines.insert(i, rng.choice(SEEDS[rng.choice([*SEEDS])].split("\n")))
        elif what == 7:
            lines[i] = line[:at] + line[at + 1 :]
        else:
            lines.insert(i, rng.choice(["", "  ", "\t"]))
        lines = lines or [""]
    data = bytearray("\n".join(lines).encode("utf-8", "surrogatepass"))
    if data and rng.random() < 0.3:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def once(pairs):
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def judged_rows(name, data):
    text = data.decode("utf-8-sig")
    assert "\0" not in text
    if name.endswith(".jsonl"):
        lines = [line for line in re.split(r"\r\n?|\n", text) if line.strip(" \t")]
        as_text = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)
        rows = [json.loads(line, object_pairs_hook=once, **as_text) for line in lines]
        assert all(isinstance(row, dict) for row in rows)
        return rows
    cells = csv.reader(io.StringIO(text, newline=""), strict=True)
    head, *others = [row for row in cells if len(row) > 1 or "".join(row).strip(" \t")]
    assert all(len(row) == len(head) for row in others)
    return [once(list(zip(head, row, strict=True))) for row in others]


def judged_number(value, field):
    word = str(value).strip(" \t").lower()
    if field == "reward" and word in ("true", "false"):
        return float(word == "true")
    if field in ("reward", "log_reference") and word in ("-inf", "-infinity"):
        return -math.inf
    assert word
    assert not set(word) - set("0123456789+-.e")
    assert math.isfinite(float(word))
    return float(word)


def judged_text(value):
    assert isinstance(value, str | bool)
    text = str(value).lower() if isinstance(value, bool) else value
    assert text.encode("utf-8")
    assert "\0" not in text
    return text


def one_edit_apart(a, b):
    if len(a) > len(b):
        a, b = b, a
    k = next((k for k in range(len(a)) if a[k] != b[k]), len(a))
    return b[k + 1 :] in (a[k:], a[k + 1 :])


def judged(name, data):
    """Outcome to reward, answer and probability."""
    rows = judged_rows(name, data)
    assert rows
    names = {field for row in rows for field in row}
    kinds = [field for field in ("reference", "log_reference", "count") if field in names]
    assert len(kinds) < 2
    wanted = ["label", *([] if kinds else ["reference", "log_reference", "count"])]
    for field in wanted:
        assert field in names or not any(one_edit_apart(field, other) for other in names)
    for field in ("prompt", "id"):
        assert len({json.dumps(row.get(field, {})) for row in rows}) == 1
    found, weights = {}, collections.defaultdict(float)
    for row in rows:
        outcome = judged_text(row["outcome"])
        reward = judged_number(row["reward"], "reward")
        label = judged_text(row["label"]) if "label" in names else outcome
        weight = judged_number(row[kinds[0]], kinds[0]) if kinds else 1.0
        assert weight <= 1e-6 if kinds == ["log_reference"] else weight >= 0
        assert found.setdefault(outcome, (reward, label)) == (reward, label)
        assert outcome not in weights or kinds in ([], ["count"])
        weights[outcome] += math.exp(weight) if kinds == ["log_reference"] else weight
    total = sum(weights.values())
    assert 0 < total < math.inf
    assert kinds in ([], ["count"]) or abs(total - 1) < 1.6e-8
    return {outcome: (*found[outcome], weights[outcome] / total) for outcome in found}


WHOLE = "no outcomes|no field|is '.*' meant|how often|at most one|sum|all counts|y 0|finite for at"


def test_mutants_are_refused_or_read_as_a_simple_minded_judge_reads_them(tmp_path):
    rng, verdicts = random.Random(0), collections.Counter()
    for i in range(2000):
        name = [*SEEDS][i % len(SEEDS)]
        data = mutant(rng, name)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            found = table(load(path))
        except ValueError as error:
            verdicts["refused"] += 1
            message = str(error)
            assert message.startswith(str(path)), data
            line = re.match(r", line (\d+)", message.removeprefix(str(path)))
            lines = len(re.split(rb"\r\n?|\n", data))
            assert 1 <= int(line[1]) <= lines if line else re.search(WHOLE, message), message
            continue
        verdicts["read"] += 1
        assert found == judged(name, data), data
    assert min(verdicts["read"], verdicts["refused"]) > 400, verdicts


def test_the_judge_reads_the_seeds_and_what_is_rightly_said_otherwise(tmp_path):
    """Not too strict on either side: these must be read."""
    said = {
        "counts.csv": [("0.5", "5E-1"), ("a,1,4", "a,true,4.0"), ("prompt", "Prompt")],
        "samples.jsonl": [("true", '"TRUE"'), ('"4"', "4"), ('"id": 3, ', "")],
        "logs.jsonl": [("-1000.0", "-Infinity"), ("\n", "\r\n\r\n"), ("}", ', "n": []}')],
        "shares.csv": [("0.25", ".25"), ("1e-3", " +1e-3"), ("\n1,", "\n   \n1,")],
    }
    for name, changes in said.items():
        for old, new in [("", ""), *changes]:
            text = SEEDS[name].replace(old, new)
            assert old in SEEDS[name]
            (tmp_path / name).write_text(text, newline="")
            assert table(load(tmp_path / name)) == judged(name, text.encode())
