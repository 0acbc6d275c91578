"""label against a teacher on the loopback: what it leaves, what it asks and
never asks, ceilings, faults and kills.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import disguises, endpoint, teacher, tiny
from support.endpoint import fails
from support.forks import Forks
from support.scale import FULL, sampled
from support.servers import settles

from slmctl.artifacts import artifact
from slmctl.errors import NetworkError, PausedError, UsageError
from slmctl.network import endpoint_pool
from slmctl.stages.label.journal import Budget, Journal

pytest.importorskip("httpx")
pytest.importorskip("sklearn")
ONE = "  votes: 1\n"
FEW = ONE + "  examples: 2\n"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait as long between attempts as a courteous client does."""
    monkeypatch.setattr(endpoint_pool, "FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(endpoint_pool, "LONGEST_WAIT_S", 0.02)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, endpoint.Fake]:
    """A project that was labelled, and what its teacher was asked."""
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path_factory.mktemp("label") / "desk", fake.url, rows=60, more=ONE
        )
        teacher.slmctl(folder, "label")
    return folder, fake


def files_of(found: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        name: teacher.lines(found / f"{name}.jsonl") for name in ("accepted", "review", "refused")
    }


def journal(folder: Path) -> Journal:
    (path,) = (folder / "runs" / ".teachers").glob("*.jsonl")
    one = Journal(path)
    one.close()
    return one


def test_every_row_is_in_one_file_with_what_it_was_labelled_by(
    done: tuple[Path, endpoint.Fake],
) -> None:
    folder, _ = done
    found = teacher.labelled(folder)
    files = files_of(found)
    texts = [row["input"] for rows in files.values() for row in rows]
    assert sorted(texts) == sorted((folder / "new.csv").read_text().splitlines()[1:])
    assert len(files["accepted"]) > 40
    for row in files["accepted"]:
        assert row["output"] in tiny.WORDS
        assert row["teacher"] == ["large"]
        assert len(row["votes"]) == 1
        assert 0 < row["weight"] <= 1
        assert row["weight"] == max(row["p_correct"], 0.01)
        assert row["prompt"] == files["accepted"][0]["prompt"]
    metrics = artifact.load(found).metrics
    assert metrics["error_bound"] <= 0.05
    assert metrics["accepted"] == len(files["accepted"])
    wrong = sum(row["output"] != teacher.label_of(row["input"]) for row in files["accepted"])
    assert wrong <= 3  # of about 55; a bound of 5 %, and a teacher that errs in 10 %
    page = (found / "report.html").read_text()
    for said in (
        "accepted",
        "Stricter and looser thresholds",
        "Gold rows that the teachers answer otherwise",
        "Nothing is declared of the terms of large",
        "Nothing left this machine",
    ):
        assert said in page


def test_the_ledger_is_the_server_s_own_count(done: tuple[Path, endpoint.Fake]) -> None:
    folder, fake = done
    ledger = journal(folder).ledger
    assert (ledger.sent, ledger.answered, ledger.failed, ledger.doubtful) == (
        len(fake.bodies),
        len(fake.bodies),
        0,
        0,
    )
    assert ledger.prompt_tokens == sum(map(teacher.tokens, fake.bodies))
    cost = (
        sum(teacher.tokens(body) * 2 for body in fake.bodies) / 1e6
        + ledger.completion_tokens * 8 / 1e6
    )
    assert ledger.cost == pytest.approx(cost)


def test_what_tests_the_threshold_is_no_example_and_what_prepare_measures_with_is_not_asked(
    done: tuple[Path, endpoint.Fake],
) -> None:
    folder, fake = done
    shown = {message["content"] for body in fake.bodies for message in body["messages"][1:-1:2]}
    asked = Counter(body["messages"][-1]["content"] for body in fake.bodies)
    gold = {text for text, _ in tiny.rows(320, seed=3)[:260]}
    assert shown <= gold
    assert set(asked.values()) == {1}
    metrics = artifact.load(teacher.labelled(folder)).metrics
    tested = metrics["gold"] - len(shown & gold)
    assert tested >= 0.6 * metrics["gold"]
    left_out = metrics["left_out"]["gold rows that prepare measures with"]
    assert left_out == 260 - metrics["gold"] > 0
    assert len(gold - set(asked)) == left_out  # the test rows reach nobody
    for body in fake.bodies:
        examples = [message["content"] for message in body["messages"][1:-1:2]]
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", *["user", "assistant"] * len(examples), "user"]
        assert len(examples) == 8
        assert body["messages"][-1]["content"] not in examples


def test_near_copies_and_test_rows_under_another_file_name_are_no_gold_rows(tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        gold = "  gold: {path: copy.csv, input: text, output: category}\n"
        folder = teacher.project(tmp_path, fake.url, rows=4, gold=60, more=FEW + gold)
        pairs = tiny.rows(64, seed=3)[:60]
        tiny.write_csv(
            folder / "copy.csv",
            [(text + end, label) for end in ("", "s", " so") for text, label in pairs],
        )
        teacher.slmctl(folder, "label")
    metrics = artifact.load(teacher.labelled(folder)).metrics
    measured = metrics["left_out"]["gold rows that prepare measures with"]
    assert measured > 0 == measured % 3  # each with its copies
    assert (
        metrics["left_out"]["gold rows nearly the same as another one"] == 120 - measured // 3 * 2
    )
    assert metrics["gold"] == 60 - measured // 3


def test_another_bound_asks_nothing_again(done: tuple[Path, endpoint.Fake], tmp_path: Path) -> None:
    folder, fake = done
    copy = tmp_path / "desk"
    shutil.copytree(folder, copy)
    before = len(fake.bodies)  # the endpoint is gone by now: a request would fail
    teacher.slmctl(copy, "label", "--max-error", "0.2")
    teacher.slmctl(copy, "label")
    assert len(fake.bodies) == before
    assert len(list((copy / "runs" / "labelled").glob("[!.]*"))) == 2


def test_few_gold_rows_give_labels_for_review_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=12, gold=30, more=FEW)
        teacher.slmctl(folder, "label")
    files = files_of(teacher.labelled(folder))
    assert [len(rows) for rows in files.values()] == [0, 12, 0]
    assert "gold rows are too few for a bound: at least 200 are needed" in capsys.readouterr().err


# Faults

TORN = (200, {}, b'{"choices": [{"message": {"content": "bil')
FAULTS: dict[str, tuple[endpoint.Turn, int]] = {  # and the status that the journal has
    "429": (fails(429, "slow down"), 429),
    "429 with a time": (fails(429, "slow down", **{"retry-after": "0.02"}), 429),
    "500": (fails(500), 500),
    "torn": (TORN, 200),
    "disconnected": ((0, {}, b""), 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_asked_again_and_stands_in_the_ledger(name: str, tmp_path: Path) -> None:
    bad, status = FAULTS[name]

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return bad if before == 0 else teacher.reply(body, teacher.answer(body))

    with endpoint.serving(manners) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=6, gold=8, more=FEW)
        teacher.slmctl(folder, "label")
    written = journal(folder)
    ledger = written.ledger
    assert (ledger.sent, ledger.answered, ledger.failed) == (
        len(fake.bodies),
        len(fake.bodies) // 2,
        ledger.answered,
    )
    assert sum(map(len, files_of(teacher.labelled(folder)).values())) == 6
    # these may have been charged, and nobody said what
    assert (ledger.doubt > 0) == (status in (0, 200))
    assert Budget([written], None).spent == ledger.cost + ledger.doubt


def test_slow_answers_are_given_up_and_asked_again(tmp_path: Path) -> None:
    asked = Counter[str]()

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        text = body["messages"][-1]["content"]
        asked[text] += 1
        late = text in list(asked)[:2]
        # the client has given the first one up by then
        assert settles(lambda: asked[text] > 1 or not late)
        return teacher.reply(body, teacher.answer(body))

    with endpoint.serving(manners) as fake:
        folder = teacher.project(
            tmp_path, fake.url, rows=8, gold=8, more=FEW, teacher=f"{teacher.PRICES}, timeout_s: 1"
        )
        teacher.slmctl(folder, "label")
    assert sum(map(len, files_of(teacher.labelled(folder)).values())) == 8
    assert len([text for text in asked if asked[text] > 1]) >= 2


def test_prose_is_read_and_what_is_no_label_is_refused(tmp_path: Path) -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        right = teacher.answer(body, wrong=0)
        text = {0: f"The label is **{right}**.", 1: "unicorn", 2: "", 3: f"{right.upper()}\n"}
        return teacher.reply(
            body, text[int(teacher.chance(body["messages"][-1]["content"], "prose") * 4)]
        )

    with endpoint.serving(manners) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=40, gold=12, more=FEW)
        teacher.slmctl(folder, "label")
    files = files_of(teacher.labelled(folder))
    assert len(files["review"]) + len(files["refused"]) == 40
    assert all(row["output"] == teacher.label_of(row["input"]) for row in files["review"])
    assert {row["reason"] for row in files["refused"]} == {
        "no teacher gave an answer that the task allows"
    }
    assert files["refused"]


def test_an_endpoint_that_refuses_the_key_ends_the_run_and_keeps_what_it_answered(
    tmp_path: Path,
) -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return (
            teacher.reply(body, teacher.answer(body))
            if len(fake.bodies) < 6 or open_again
            else fails(401)
        )

    open_again: list[bool] = []
    with endpoint.serving(manners) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=10, gold=8, more=FEW)
        with pytest.raises(NetworkError, match="the key is not accepted"):
            teacher.slmctl(folder, "label")
        answered = journal(folder).ledger.answered
        open_again.append(True)
        teacher.slmctl(folder, "label")
    assert answered >= 5
    good = Counter(body["messages"][-1]["content"] for body in fake.bodies)
    assert journal(folder).ledger.answered == len(good) == len(set(good))


# Ceilings, plans and prices


def test_a_ceiling_is_held_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path,
            fake.url,
            rows=30,
            gold=12,
            more=FEW + "  max_tokens: 8\n",
            teacher=f"{teacher.PRICES}, concurrency: 1",
        )
        with pytest.raises(
            PausedError, match=r"label stopped at label\.max_cost: \d+ rows left"
        ) as caught:
            teacher.slmctl(folder, "label", "--max-cost", "0.004")
        first = len(fake.bodies)
        tokens = sum(map(teacher.tokens, fake.bodies))
        assert 0.002 < (tokens * 2 + first * 2 * 8) / 1e6 <= 0.004
        assert not list((folder / "runs").glob("labelled/[!.]*"))
        done = caught.value.hint.partition("label.max_rows=")[2].partition(" ")[0]
        with pytest.raises(PausedError):
            teacher.slmctl(folder, "label", "--max-cost", "0.004")
        assert len(fake.bodies) == first
        teacher.slmctl(folder, "label", "--max-rows", done)  # ends with what is answered
        assert len(fake.bodies) == first
        assert sum(map(len, files_of(teacher.labelled(folder)).values())) == int(done)
        teacher.slmctl(folder, "label", "--max-cost", "1")
    assert len(fake.bodies) == len({body["messages"][-1]["content"] for body in fake.bodies})


@pytest.mark.parametrize(
    "usage", [None, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 9}]
)
def test_an_endpoint_that_tells_no_tokens_cannot_pass_the_ceiling(
    usage: Any, tmp_path: Path
) -> None:
    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        return endpoint.says(teacher.answer(body), usage=usage)

    with endpoint.serving(manners) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=30, gold=12, more=FEW)
        with pytest.raises(PausedError):
            teacher.slmctl(folder, "label", "--max-cost", "0.02")
    assert 0.5 * 0.02 < journal(folder).ledger.cost <= 0.02


def test_what_is_out_counts_against_the_ceiling(tmp_path: Path) -> None:
    one = Journal(tmp_path / "teacher.jsonl")
    budget = Budget([one], 1.0)
    assert [budget.take(one, key, 0.6) for key in ("a", "b")] == ["send", "wait"]
    assert budget.take(one, "c", 0.4) == "send"
    one.close()


def test_the_plan_is_near_the_bill_and_its_answers_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=60, gold=20, more=FEW)
        teacher.slmctl(folder, "label", "--plan", "--json")
        plan = json.loads(capsys.readouterr().out)
        assert len(fake.bodies) == plan["sample"] == plan["parts"][0]["answered"] == 20
        teacher.slmctl(folder, "label")
        capsys.readouterr()
        teacher.slmctl(folder, "label", "--plan", "--json")
        (after,) = json.loads(capsys.readouterr().out)["parts"]
        assert after["answered"] == after["answers"] > 60  # it said 20, and the time of 60 more
        assert len(fake.bodies) == len({body["messages"][-1]["content"] for body in fake.bodies})
    (bill,) = artifact.load(teacher.labelled(folder)).metrics["teachers"]
    assert plan["cost"] == pytest.approx(bill["cost"], rel=0.1)
    low, high = plan["parts"][0]["interval"]
    assert low < plan["cost"] < high


def test_answers_keep_the_price_of_their_day(tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=30, gold=8, more=FEW)
        teacher.slmctl(folder, "label", "--max-rows", "10")
        before = journal(folder).ledger
        tiny.edit_config(folder, "input: 2.0", "input: 20.0")
        teacher.slmctl(folder, "label", "--max-rows", "20")
    after = journal(folder).ledger
    dearer = after.cost - before.cost
    assert dearer == pytest.approx(
        (after.prompt_tokens - before.prompt_tokens) * 20e-6
        + (after.completion_tokens - before.completion_tokens) * 8e-6
    )


# Kills


def killed_and_gone_on(
    stages: Forks, folder: Path, fake: endpoint.Fake, instants: list[int]
) -> None:
    """Kill `slmctl label` when the server has had so many requests, each
    time, then let it end; check the account.
    """
    for instant in instants:
        child = stages.start(folder, "label")
        aim = len(fake.bodies) + instant
        while not child.has_ended and len(fake.bodies) < aim:
            time.sleep(0.002)
        child.kill()
        child.wait()
    tiny.ok(stages.run(folder, "label"))
    files = files_of(teacher.labelled(folder))
    texts = [row["input"] for rows in files.values() for row in rows]
    # none twice, none lost
    assert sorted(texts) == sorted((folder / "new.csv").read_text().splitlines()[1:])
    ledger = journal(folder).ledger
    served = Counter(body["messages"][-1]["content"] for body in fake.bodies)
    assert len(served) == ledger.answered  # an answer is written down once
    # a request of which nothing came back was out when a kill came: it was served, or had not
    # arrived yet
    assert ledger.sent == ledger.answered + ledger.doubtful
    assert ledger.answered <= len(fake.bodies) <= ledger.sent
    assert ledger.doubtful <= 2 * len(instants)  # concurrency 2
    assert len(fake.bodies) - len(served) <= ledger.doubtful


def test_killed_at_a_few_instants_it_goes_on(stages: Forks, tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path, fake.url, rows=20, gold=8, more=FEW, teacher="concurrency: 2"
        )
        killed_and_gone_on(stages, folder, fake, [1, 9])


@pytest.mark.slow
def test_killed_at_many_instants_it_goes_on(stages: Forks, tmp_path: Path) -> None:
    count = 50 if FULL else 12
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path, fake.url, rows=8 * count, gold=8, more=FEW, teacher="concurrency: 2"
        )
        killed_and_gone_on(stages, folder, fake, [1 + k % 8 for k in range(count)])


# Personal data


def planted(folder: Path, url: str, count: int, **more: Any) -> list[str]:
    """A project whose rows hold a personal value each, in every disguise in turn; the values."""
    ways = [*(disguises.MUTATIONS | disguises.MORE).values()]
    assert len(ways) == 22
    teacher.project(folder, url, rows=6, gold=8, **more)
    cases = disguises.prompts(count, seed=11)
    rows = [
        "\n".join(
            message["content"] for message in ways[k % 22](text, value) if message["role"] == "user"
        )
        for k, (_, text, value) in enumerate(cases)
    ]
    plain = (folder / "new.csv").read_text().splitlines()[1:]
    lines = [json.dumps({"text": text}) for text in (*plain, *rows)]
    (folder / "new.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tiny.edit_config(folder, "new.csv", "new.jsonl")
    return [value for _, _, value in cases]


def nothing_sensitive_left(folder: Path, count: int, **more: Any) -> None:
    with endpoint.serving(teacher.decisions if more else teacher.manners()) as fake:
        values = planted(folder, fake.url, count, more=FEW, **more)
        teacher.slmctl(folder, "label")
    assert len(fake.bodies) == 6 + 8 - artifact.load(teacher.labelled(folder)).metrics[
        "left_out"
    ].get("gold rows that prepare measures with", 0)
    sent = json.dumps(fake.bodies)
    assert not [value for value in values if value in sent]
    refused = teacher.lines(teacher.labelled(folder) / "refused.jsonl")
    assert len(refused) + artifact.load(teacher.labelled(folder)).metrics["left_out"].get(
        "the same as another row", 0
    ) == len(values)
    assert {row["reason"] for row in refused} == {
        "sensitive, and no teacher on this machine may read it"
    }


@pytest.mark.parametrize(
    "more", sampled([{}, {"teacher": "api: decisions"}, {"teacher": "api: systemone"}], [{}])
)
def test_no_personal_data_leaves_in_22_disguises(tmp_path: Path, more: dict[str, str]) -> None:
    nothing_sensitive_left(tmp_path, 44, **more)


@pytest.mark.parametrize("api", sampled(["decisions", "systemone"], ["decisions"]))
def test_a_teacher_that_decides_is_bounded_by_its_probabilities(tmp_path: Path, api: str) -> None:
    """One answer a row; the probability, not the `confidence` of the reply, is the signal.

    The text alone is asked about; the nearest gold rows stand in the descriptions of their labels.
    """
    with endpoint.serving(teacher.decisions) as fake:
        folder = teacher.project(
            tmp_path, fake.url, rows=60, teacher=f"{teacher.PRICES}, api: {api}"
        )
        teacher.slmctl(folder, "label")
        config = (folder / "slmctl.yaml").read_text()
        many = f"classify, labels: {[f'l{k}' for k in range(253)] + list(tiny.WORDS)}"
        for kind, said in (
            (many, "2 to 255 labels, and this classify task has 256"),
            ("generate", "task has 0"),
        ):
            odd = config.replace("kind: classify, labels: from-data", f"kind: {kind}")
            (folder / "slmctl.yaml").write_text(odd, encoding="utf-8")
            asked = len(fake.bodies)
            with pytest.raises(UsageError, match=said):
                teacher.slmctl(folder, "label")
            assert len(fake.bodies) == asked
    gold = {text for text, _ in tiny.rows(320, seed=3)[:260]}
    assert set(fake.questions) <= {*gold, *(folder / "new.csv").read_text().splitlines()}
    assert len(fake.bodies) == len(set(fake.questions))
    # label.examples
    assert {json.dumps(body["questions"]).count("For example: ") for body in fake.bodies} == {8}
    metrics = artifact.load(teacher.labelled(folder)).metrics
    assert metrics["error_bound"] <= 0.05
    files = files_of(teacher.labelled(folder))
    assert {len(row["votes"]) for row in (*files["accepted"], *files["review"])} == {1}
    assert {row["votes"][0]["confidence"] for row in files["review"]} == {0.6}
    ledger = journal(folder).ledger
    assert ledger.cost == pytest.approx(len(fake.bodies) * 40 * 2 / 1e6)


@pytest.mark.slow
def test_of_1000_rows_with_personal_data_no_byte_of_it_leaves(tmp_path: Path) -> None:
    nothing_sensitive_left(tmp_path, 1000)


def test_what_is_redacted_leaves_as_a_mark(tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners()) as fake:
        folder = teacher.project(
            tmp_path, fake.url, rows=1, gold=8, more=FEW + "  redact: [email]\n"
        )
        (folder / "new.csv").write_text(
            "text\ncharged twice write to jane.doe@example.org please\n", encoding="utf-8"
        )
        teacher.slmctl(folder, "label")
    assert "charged twice write to [EMAIL_1] please" in fake.questions
    assert "jane.doe" not in json.dumps(fake.bodies)
    (row,) = teacher.lines(teacher.labelled(folder) / "review.jsonl")
    assert row["input"] == "charged twice write to jane.doe@example.org please"


def test_rows_with_the_same_id_of_their_own_are_apart(tmp_path: Path) -> None:
    with endpoint.serving(teacher.manners(wrong=0)) as fake:
        folder = teacher.project(tmp_path, fake.url, rows=1, gold=8, more=FEW)
        lines = [
            "text,ticket",
            "parcel late write to jane.doe@example.org,7",
            "invoice charged twice,7",
        ]
        (folder / "new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tiny.edit_config(folder, "new.csv, input: text", "new.csv, input: text, id: ticket")
        teacher.slmctl(folder, "label")
    assert "jane.doe" not in json.dumps(fake.bodies)
    files = files_of(teacher.labelled(folder))
    assert [(row["input"], row["output"]) for row in files["review"]] == [
        ("invoice charged twice", "billing")
    ]
    assert [row["input"] for row in files["refused"]] == [
        "parcel late write to jane.doe@example.org"
    ]
    assert files["review"][0]["id"] != files["refused"][0]["id"]


# Input


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("", "there is no section 'label'"),
        ("[{url: 'https://h/v1'}]", "'url' and 'model' come together"),
        ("[{release: r, key_env: KEY}]", "'key_env', 'prices' and 'api' belong to 'url'"),
        (
            "[{url: 'https://h/v1', model: m, release: r}]",
            "either 'url' with 'model', or 'release'",
        ),
        ("[{url: 'https://h/v1', model: m}]\n  max_cost: 3", "'max_cost' needs the 'prices'"),
        (
            "[{url: 'https://h/v1', model: m}, {url: 'https://h/v1', model: m}]",
            "two teachers are the same",
        ),
    ],
)
def test_a_config_that_cannot_be_held_is_refused(section: str, said: str, tmp_path: Path) -> None:
    folder = teacher.project(tmp_path, "http://127.0.0.1:9/v1")
    text = (folder / "slmctl.yaml").read_text()
    head = (
        f"{text.partition('  teachers:')[0]}  teachers: {section}\n"
        if section
        else text.partition("label:\n")[0]
    )
    (folder / "slmctl.yaml").write_text(head, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        teacher.slmctl(folder, "label")
