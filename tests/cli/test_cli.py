"""The command line: help that comes at once, texts that match the config, and an exit code for each
failure.

`SLMCTL_UPDATE_GOLDEN=1 pytest tests/cli/test_cli.py` writes the help texts in tests/golden/help
anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner
from support import TESTS, handmade, released
from support.handmade import opened
from support.program import slmctl

from slmctl import __version__, config
from slmctl.artifacts import locks
from slmctl.artifacts.artifact import Artifact
from slmctl.cli import doctor_checks, run_plan
from slmctl.cli.group import CHAIN, NAMES_ELSEWHERE, SECTIONS
from slmctl.cli.init_command import TEMPLATES
from slmctl.cli.main import cli
from slmctl.errors import GateError, IntegrityError, UsageError
from slmctl.pipeline import LEAVES, plan, runner
from slmctl.pipeline.graph import stage_class
from slmctl.pipeline.named import Workspace, find_model
from slmctl.releases import registry
from slmctl.releases.targets.local import FolderTarget

SCRIPT = Path(sys.executable).with_name("slmctl")
GOLDEN = TESTS / "golden" / "help"
ROWS = {
    "train": 80,
    "validation": 10,
    "calibration": 0,
    "test": 10,
    "rejected": 0,
    "tokens": {"total": 4000},
    "splits": {"by": "content"},
}
GOOD = "project: acme\nbase: base\nprepare: {sources: [{path: a.csv}]}\n"


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, by the words that name it; the program itself is the empty one."""
    yield prefix
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


def command(*words: str) -> click.Command:
    found: click.Command = cli
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with a config and its sources, and no artifacts."""
    (tmp_path / "slmctl.yaml").write_text(GOOD)
    (tmp_path / "a.csv").write_text("input,output\nhello,world\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path


def leave(root: Path, stage: str) -> Artifact:
    """An artifact where the config's recipe puts it, as if its stage had run."""
    return handmade.leave(opened(root).request(stage), metrics=ROWS if stage == "prepare" else {})


# Help


@pytest.mark.parametrize("words", list(commands()), ids="-".join)
def test_help_is_the_golden_text(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(
        cli, [*words, "--help"], prog_name="slmctl", terminal_width=100, max_content_width=100
    )
    assert result.exit_code == 0
    path = GOLDEN / f"{'-'.join(words) or 'slmctl'}.txt"
    if os.environ.get("SLMCTL_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result.output, encoding="utf-8")
    assert result.output == path.read_text(encoding="utf-8")


def test_every_command_stands_in_one_section_of_the_help_and_every_near_name_leads_to_one() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    assert not set(NAMES_ELSEWHERE) & set(listed)
    for answers in NAMES_ELSEWHERE.values():
        for name, *flags in map(str.split, answers):
            assert set(flags) <= {
                flag for parameter in cli.commands[name].params for flag in parameter.opts
            }


@pytest.mark.parametrize("shell", doctor_checks.COMPLETION)
def test_the_line_that_doctor_prints_completes_at_once(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    place, line = doctor_checks.COMPLETION[shell]
    assert doctor_checks._completion().result == f"in {place}: {line}"
    assert line in (TESTS.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    code = (
        "import sys\nfrom slmctl.cli.main import main\nsys.argv = ['slmctl']\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(' '.join(sys.modules))\n"
    )
    asked = {"COMP_WORDS": "slmctl evalu", "COMP_CWORD": "evalu" if shell == "fish" else "1"}
    env = os.environ | asked | {"_SLMCTL_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert "evaluate" in done.stdout
    # else each tab would wait
    assert not {"pydantic", "rich", "numpy", "torch"} & set(done.stderr.split())


def test_no_golden_text_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {
        "-".join(words) or "slmctl" for words in commands()
    }


HEAVY = {
    "numpy",
    "torch",
    "jinja2",
    "jsonschema",
    "rapidfuzz",
    "transformers",
    "llama_cpp",
    "gguf",
    "sklearn",
    "starlette",
    "uvicorn",
    "httpx",
    "asyncio",
}
# bare click is what `--help` should cost; pydantic alone costs as much again
OF_CONFIG = {"pydantic", "yaml", "rich"}


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--help"], HEAVY | OF_CONFIG),
        (["init", "--help"], HEAVY | OF_CONFIG),
        (["finetune", "--nonsense"], HEAVY | OF_CONFIG),
        *(([command], HEAVY) for command in ("ls", "show", "gc")),
        # the help of a flag that stands for a key is read in the config
        (["finetune", "--help"], HEAVY),
    ],
    ids=["help", "help of a command", "an unknown flag", "ls", "show", "gc", "help of a key"],
)
def test_what_is_to_come_at_once_imports_nothing_heavy(
    arguments: list[str], refused: set[str]
) -> None:
    code = (
        "import contextlib, io, sys\nfrom slmctl.cli.main import main\n"
        f"sys.argv = ['slmctl', *{arguments}]\n"
        "with contextlib.redirect_stdout(io.StringIO()), "
        "contextlib.redirect_stderr(io.StringIO()):\n"
        "    with contextlib.suppress(SystemExit):\n        main()\n"
        "sys.stdout.write(' '.join({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not loaded & refused


def test_every_command_and_option_has_help() -> None:
    for words in commands():
        found = command(*words)
        assert found.help, words
        for parameter in found.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (words, parameter.name)


def test_no_sentence_of_the_list_of_commands_is_cut_at_80_columns() -> None:
    listed = CliRunner().invoke(cli, ["--help"], prog_name="slmctl", terminal_width=80).output
    words = " ".join(listed.split())
    for found in cli.commands.values():
        assert found.get_short_help_str(1000) in words
    assert max(map(len, listed.splitlines())) <= 80


# The help of a key is written once, in the config


@pytest.mark.parametrize(
    ("words", "flag", "section", "field"),
    [
        ("finetune", "--epochs", config.FinetuneConfig, "epochs"),
        ("finetune", "--learning-rate", config.FinetuneConfig, "learning_rate"),
        ("finetune", "--seed", config.FinetuneConfig, "seed"),
        ("quantize", "--type", config.QuantizeConfig, "types"),
        ("predict", "--type", config.PredictConfig, "type"),
        ("predict", "--split", config.PredictConfig, "split"),
        ("evaluate", "--model", config.EvaluateConfig, "models"),
        ("evaluate", "--split", config.PredictConfig, "split"),
        ("publish", "--to", config.PublishConfig, "to"),
        ("calibrate", "--max-error", config.CalibrateConfig, "max_error"),
        ("calibrate", "--out-of-scope", config.CalibrateConfig, "out_of_scope"),
        ("serve", "--type", config.PredictConfig, "type"),
        ("serve", "--policy", config.ServeConfig, "policy"),
        ("serve", "--generalist", config.GeneralistConfig, "url"),
        ("serve", "--generalist-model", config.GeneralistConfig, "model"),
        ("serve", "--generalist-key-env", config.GeneralistConfig, "key_env"),
        ("serve", "--host", config.ServeConfig, "host"),
        ("serve", "--port", config.ServeConfig, "port"),
        ("serve", "--keys", config.ServeConfig, "keys"),
        ("serve", "--engine-url", config.Endpoint, "url"),
        ("serve", "--engine-model", config.Endpoint, "model"),
        ("serve", "--engine-key-env", config.Endpoint, "key_env"),
        ("chat", "--type", config.PredictConfig, "type"),
    ],
)
def test_flag_has_the_help_of_its_key(
    words: str, flag: str, section: type[config.Section], field: str
) -> None:
    (option,) = [one for one in command(words).params if flag in one.opts]
    assert isinstance(option, click.Option)
    assert option.help == section.model_fields[field].description
    # click keeps the help option it makes first: with the names of the program, other tests see no
    # difference
    left_out = (
        command(words)
        .make_context(words, [], resilient_parsing=True, help_option_names=["-h", "--help"])
        .params.get(option.name or "")
    )
    assert left_out in (None, ())  # never compared with a default
    schema = section.model_json_schema()["properties"][field]
    if isinstance(option.type, click.Choice):
        assert list(option.type.choices) == schema["enum"]


def test_one_word_in_every_place() -> None:
    for name in LEAVES:
        assert name in cli.commands
        assert (
            type(config.stage_config(config.parse(GOOD), name)).__name__
            == f"{name.capitalize()}Config"
        )
        assert stage_class(name).name == name
    assert [name for name in LEAVES if name in CHAIN] == list(CHAIN)
    assert set(LEAVES) - set(CHAIN) == {"predict", "sum"}  # evaluate runs them


def test_every_role_of_a_stage_can_be_given_a_path() -> None:
    for name in LEAVES:
        flags = {flag for parameter in command(name).params for flag in parameter.opts}
        missing = {role.name for role in stage_class(name).takes if f"--{role.name}" not in flags}
        # predict takes its model as an argument, evaluate its models as --model (and predicts
        # validation rows itself); quantize writes the base's own files itself; publish and predict
        # find what a gguf artifact was made of by its digests, evaluate the data set of a release,
        # calibrate that of its predictions
        assert missing <= {
            "predict": {"model", "base", "sum"},
            "quantize": {"base_files", "base"},
            "sum": {"validation"},
            "evaluate": {"predictions", "validation", "released", "sum"},
            "calibrate": {"prepared"},
            "publish": {"base", "prepared", "adapter", "merged", "sum", "encoder"},
        }.get(name, set()), name


def test_templates_are_those_that_ship() -> None:
    shipped = {path.parent.name for path in (TESTS.parent / "templates").glob("*/slmctl.yaml")}
    assert set(TEMPLATES) == shipped


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "No such option"),
        (["finetune", "--nonsense"], "No such option"),
        (["nonsense"], "no command 'nonsense'\n hint: slmctl --help"),
        (["evalute"], "no command 'evalute': slmctl evaluate\n hint: slmctl evaluate --help"),
        (["train"], "no command 'train': slmctl finetune\n"),
        (["export"], "no command 'export': slmctl quantize or slmctl publish\n"),
        (["list"], "no command 'list': slmctl ls\n"),
        (["stop"], "no command 'stop'\n hint: a server ends with Ctrl-C or SIGTERM"),
        (["upgrade"], "no command 'upgrade'\n hint: install the new version with pip"),
        (["delete"], "no command 'delete': slmctl gc or slmctl keys\n"),
        (["import"], "no command 'import': slmctl init or slmctl pull\n"),
        (["run", "--dry-run"], "\n hint: slmctl run --plan"),
        (["publish", "--dry-run"], "\n hint: slmctl publish --plan"),
        (["merge", "--dry-run"], "\n hint: slmctl run --plan"),
        (["run", "--until", "nonsense"], "is not one of 'pull', 'label'"),
        (["-C", "no/such/folder", "run"], "does not exist"),
        (["init", "nonsense"], "no file and no template 'nonsense'"),
        (["init", "~nobody-here/x.csv"], "~nobody-here/x.csv: the home folder is not known"),
    ],
    ids=str,
)
def test_wrong_use_is_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = slmctl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "command", "said"),
    [
        (["nonsense"], 2, "nonsense", "no command 'nonsense'"),
        (["keys", "add", "crm", "--rate", "x"], 2, "keys add", "'x' is not a valid float range"),
        (["-C", ".", "run", "--dry-run"], 2, "run", "No such option"),
        (["run"], 2, "run", "slmctl.yaml does not exist"),
        (["verify"], 7, "verify", "there are no artifacts"),
        (["init", "\x1b[31mé.csv"], 2, "init", "é.csv matches no file"),
        (["init", "a" * 300], 2, "init", "File name too long"),
    ],
    ids=str,
)
def test_an_error_is_a_line_of_json_where_that_is_asked(
    arguments: list[str],
    code: int,
    command: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLMCTL_ERRORS", "json")
    done = slmctl(*arguments, cwd=tmp_path)
    fields = json.loads(done.stderr)  # one line, and nothing beside it
    assert set(fields) == {"error", "hint", "exit_code", "reason", "command"}
    assert fields["reason"] is None
    assert (done.returncode, fields["exit_code"], fields["command"], done.stdout) == (
        code,
        code,
        command,
        "",
    )
    assert said in fields["error"]
    assert done.stderr.isascii()


def registry_of(folder: Path, *versions: str) -> Path:
    """A registry with releases of desk, the last of which is in
    production; the gates of none are recorded.
    """
    root = folder / "registry"
    for version in versions:
        made = released.release(
            folder, version, weights=version.encode(), **{"rows.jsonl": b"{}\n"}
        )
        released.send(FolderTarget(root), made)
        registry.promote(root, registry.find(root, f"desk@{version}"), "production")
    shutil.rmtree(root / "desk" / ".gates")
    return root


def test_a_script_reads_in_one_word_why_a_release_was_not_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_of(tmp_path, "1.0")
    monkeypatch.setenv("SLMCTL_ERRORS", "json")
    done = slmctl("promote", "dir:registry#1.0", "--tag", "next", cwd=tmp_path)
    fields = json.loads(done.stderr)
    assert (done.returncode, fields["exit_code"], fields["reason"]) == (5, 5, "gates_unknown")


def test_a_script_that_asks_for_json_gets_its_errors_so_too(tmp_path: Path) -> None:
    registry_of(tmp_path, "1.0")
    done = slmctl("show", "dir:registry#nightly", "--json", cwd=tmp_path)
    fields = json.loads(done.stderr)
    assert (done.returncode, done.stdout, fields["exit_code"], fields["reason"]) == (7, "", 7, None)
    assert "holds no release 'nightly'" in fields["error"]


def test_an_engineer_asks_what_is_in_production(tmp_path: Path) -> None:
    root = registry_of(tmp_path, "1.0", "1.1")
    release = registry.find(root, "production")
    shown = slmctl("show", "dir:./registry#production", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].startswith("published  ")
    facts = {line[:9].strip(): line[9:] for line in shown.stdout.partition("\n\n")[2].splitlines()}
    assert facts == {
        "project": "desk",
        "version": "1.1",
        "tags": "production",
        "digest": release.digest,
        "made": release.manifest.started,
        "base": "tiny",
        "path": str(root / "desk" / "1.1"),
        "model": "Q8_0",
        "figure": "accuracy 90.0 % (0.0 % to 100.0 %) on 1 row of test",
    }
    told = json.loads(slmctl("show", "dir:registry#desk@1.0", "--json", cwd=tmp_path).stdout)
    assert (told["kind"], told["release"]["version"], told["release"]["tags"]) == (
        "published",
        "1.0",
        [],
    )
    assert told["release"]["metric"]["value"] == 0.9


def test_a_tag_that_is_not_there_gets_the_sentence_of_serve(tmp_path: Path) -> None:
    root = registry_of(tmp_path, "1.0")
    with pytest.raises(IntegrityError) as served:
        find_model(
            Workspace(tmp_path, lambda: opened(tmp_path)),
            "dir:registry#nightly",
            ["published"],
            default="",
        )
    for words in (
        ("show",),
        ("verify",),
        ("diff", "dir:registry#1.0"),
        ("promote", "--tag", "next"),
    ):
        done = slmctl(*words, "dir:registry#nightly", cwd=tmp_path)
        assert done.stderr == f"error: {served.value.message}\n hint: {served.value.hint}\n", words
        assert done.returncode == 7
    assert served.value.message == f"{root} holds no release 'nightly'"
    elsewhere = slmctl("show", "s3://bucket/desk#1.0", cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert "hint: slmctl fetch s3://bucket/desk#1.0, and name its folder" in elsewhere.stderr


def test_two_tags_are_compared_and_a_release_is_verified_by_its_tag(tmp_path: Path) -> None:
    root = registry_of(tmp_path, "1.0", "1.1")
    done = slmctl("diff", "dir:registry#1.0", "dir:registry#production", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (told["kind"], told["same"], told["second"]["path"]) == (
        "published",
        False,
        str(root / "desk" / "1.1"),
    )
    assert (
        slmctl("verify", "dir:registry#production", cwd=tmp_path).stdout
        == f"{root / 'desk' / '1.1'}: whole\n"
    )


def test_results_that_scripts_read_are_json(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "_matmul", list)  # takes ten seconds
    checks = json.loads(slmctl("doctor", "--json", cwd=bare).stdout)
    assert {"name", "result", "ok", "remedy"} == set(checks[0])
    assert slmctl("doctor", cwd=bare).stdout.splitlines()[0].startswith("ok   slmctl")
    assert json.loads(slmctl("keys", "list", "--json", cwd=bare).stdout) == []
    first = slmctl("keys", "add", "crm", "--rate", "60", "--model", "acme", cwd=bare)
    assert "a server that was started without it asks for no key until a restart" in first.stderr
    assert "restart" not in slmctl("keys", "add", "web", cwd=bare).stderr
    (crm, web) = json.loads(slmctl("keys", "list", "--json", cwd=bare).stdout)
    assert (crm["name"], crm["rate"], crm["concurrency"], crm["models"]) == (
        "crm",
        60.0,
        None,
        ["acme"],
    )
    # and no hash
    assert (web["name"], set(web)) == ("web", {"name", "created", "rate", "concurrency", "models"})
    made = leave(bare, "pull")
    whole = slmctl("verify", "--json", cwd=bare)
    assert (whole.returncode, json.loads(whole.stdout)) == (
        0,
        [{"path": str(made.path.relative_to(bare)), "faults": []}],
    )
    (made.path / "extra").write_text("x")
    damaged = slmctl("verify", "--json", cwd=bare)
    assert damaged.returncode == 7
    assert json.loads(damaged.stdout)[0]["faults"] == ["extra: extra"]


def test_show_completes_kinds_ids_and_files(bare: Path) -> None:
    made = leave(bare, "pull")
    for begun, wanted in (
        ("ba", "plain,base"),
        (made.path.name[:3], f"plain,{made.path.name}"),
        ("a.c", "file,a.c"),
    ):
        env = os.environ | {
            "COMP_WORDS": f"slmctl show {begun}",
            "COMP_CWORD": "2",
            "_SLMCTL_COMPLETE": "bash_complete",
        }
        done = subprocess.run(
            [SCRIPT], env=env, cwd=bare, capture_output=True, text=True, check=False
        )
        assert wanted in done.stdout.splitlines()


def test_who_calls_gc_with_nothing_to_do_reads_one_line(bare: Path) -> None:
    lock = bare / "runs" / ".locks" / "base-0123456789ab"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    done = slmctl("gc", cwd=bare)
    # it asks nothing about locks alone
    assert (done.returncode, done.stderr, lock.exists()) == (0, "", False)
    assert done.stdout == "nothing to remove: all that is here is needed\n"


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["pull"], ["finetune"], ["evaluate"], ["config", "show"], ["show"]],
    ids=str,
)
def test_missing_config_is_2(arguments: list[str], tmp_path: Path) -> None:
    done = slmctl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "slmctl.yaml does not exist" in done.stderr
    assert " hint: slmctl init FILE" in done.stderr


def test_bad_config_is_2_with_every_fault(tmp_path: Path) -> None:
    (tmp_path / "slmctl.yaml").write_text(
        "project: acme\nfinetune:\n  epoch: 3\n  seed: -1\ntrian: {}\n"
    )
    done = slmctl("run", "--set", "serve.port=x", cwd=tmp_path)
    assert done.returncode == 2
    for fault in (
        "slmctl.yaml:3: finetune.epoch: unknown key; did you mean 'epochs'?",
        "slmctl.yaml:4: finetune.seed: found '-1'",
        "slmctl.yaml:5: trian: unknown key",
        "base: is required",
        "--set: serve.port: found 'x'",
        " hint: slmctl config schema describes every key\n",
    ):
        assert fault in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["finetune", "--learning-rate", "9"], "--set: finetune.learning_rate: found '9'"),
        (
            ["finetune", "--epochs", "many"],
            "--set: finetune.epochs: found 'many': input should be a valid number",
        ),
        (
            ["quantize", "--type", "Q8_0", "--type", "Q9"],
            "--set: quantize.types.1: 'Q9' is no quantization type",
        ),
        (["publish", "--to", "ftp://x"], "--set: publish.to: found 'ftp://x'"),
        (["serve", "--port", "70000"], "--set: serve.port: found '70000'"),
    ],
    ids=str,
)
def test_named_flag_is_an_override(arguments: list[str], fault: str, bare: Path) -> None:
    done = slmctl(*arguments, cwd=bare)
    assert done.returncode == 2
    assert fault in done.stderr


@pytest.mark.parametrize(
    ("made", "arguments", "until"),
    [
        ([], ["prepare"], ""),
        ([], ["chat"], ""),
        (["pull"], ["finetune"], "prepare"),
        (["pull", "prepare"], ["merge"], "finetune"),
        (["pull", "prepare", "finetune"], ["quantize"], "merge"),
        (["pull", "prepare"], ["predict", "base", "--type", "Q8_0", "--prepared", "nowhere"], None),
        (["pull", "prepare", "finetune", "merge"], ["predict"], "quantize"),
    ],
    ids=str,
)
def test_missing_artifact_is_7_with_the_way_to_it(
    made: list[str], arguments: list[str], until: str | None, bare: Path
) -> None:
    for stage in made:
        leave(bare, stage)
    done = slmctl(*arguments, cwd=bare)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if until is not None:
        assert f" hint: slmctl run{until and f' --until {until}'}\n" in done.stderr


def test_current_artifact_is_0_with_its_path_alone(bare: Path) -> None:
    found = leave(bare, "pull")
    done = slmctl("pull", cwd=bare)
    assert (done.returncode, done.stdout) == (0, f"{found.path}\n")
    assert "current" in done.stderr
    quiet = slmctl("-q", "pull", "--json", cwd=bare)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == found.manifest.to_bytes().decode()


def test_damaged_artifact_is_7(bare: Path) -> None:
    found = leave(bare, "pull")
    (found.path / "content.txt").unlink()
    done = slmctl("pull", cwd=bare)
    assert done.returncode == 7
    assert "is damaged: missing: content.txt" in done.stderr
    assert f"rm -r {found.path}" in done.stderr


def test_locked_is_8(bare: Path) -> None:
    leave(bare, "pull")
    made = opened(bare)
    asked = made.request("prepare")
    lock = bare / "runs" / ".locks" / f"prepared-{asked.path.name}"
    with locks.lock(lock, wait=False, on_wait=pytest.fail):
        done = slmctl("prepare", "--no-wait", cwd=bare)
    assert done.returncode == 8
    assert f"is locked by pid {os.getpid()} on" in done.stderr


# Commands


def test_the_installed_program_says_its_version() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"slmctl {__version__}\n"


@pytest.mark.parametrize("template", TEMPLATES)
def test_init_writes_a_project_that_loads(template: str, tmp_path: Path) -> None:
    done = slmctl("init", template, "demo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "demo\n")
    assert "next: slmctl -C demo run" in done.stderr
    made = config.load(tmp_path / "demo" / "slmctl.yaml")
    assert config.recipe(made.prepare)["sources"]
    paths = [source.path for source in made.prepare.sources]
    assert all(path.is_relative_to(tmp_path / "demo") and path.exists() for path in paths)


def test_results_are_utf_8_whatever_the_terminal_is_set_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slmctl", "init", "support-triage", "größe–1"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert done.stdout.decode() == "größe–1\n"


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    assert slmctl("init", "support-triage", cwd=tmp_path).stdout == "support-triage\n"
    mine = tmp_path / "support-triage" / "support_tickets.csv"
    mine.write_text("text,category\nmine,a\n")
    (tmp_path / "support-triage" / "slmctl.yaml").unlink()
    done = slmctl("init", "support-triage", cwd=tmp_path)
    assert done.returncode == 2
    assert "support_tickets.csv exists already" in done.stderr
    assert mine.read_text() == "text,category\nmine,a\n"
    assert not (tmp_path / "support-triage" / "slmctl.yaml").exists()  # all or nothing


def test_config_schema_is_the_schema(tmp_path: Path) -> None:
    done = slmctl("config", "schema", cwd=tmp_path)  # no config is needed
    assert done.returncode == 0
    assert json.loads(done.stdout) == config.schema()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_config_show_fills_in_every_default(bare: Path, after: bool) -> None:
    place = ["-C", str(bare)]
    shown = ["config", "show", "--set", "finetune.epochs=9"]
    done = slmctl(*(shown + place if after else place + shown))
    assert done.returncode == 0
    values = yaml.safe_load(done.stdout)
    assert values["finetune"]["epochs"] == 9
    assert values["serve"]["host"] == "127.0.0.1"
    assert "base" not in values["pull"]


def test_verify_of_nothing_is_7(tmp_path: Path) -> None:
    done = slmctl("verify", cwd=tmp_path)
    assert done.returncode == 7
    assert "there are no artifacts below" in done.stderr
    assert " hint: slmctl run" in done.stderr


def test_verify_names_what_has_changed(bare: Path) -> None:
    base, prepared = leave(bare, "pull"), leave(bare, "prepare")
    names = {one.path.relative_to(bare).as_posix() for one in (base, prepared)}
    whole = slmctl("verify", cwd=bare)
    assert whole.returncode == 0
    assert set(whole.stdout.splitlines()) == {f"{name}: whole" for name in names}
    content = base.path / "content.txt"
    content.write_text(content.read_text().upper())
    done = slmctl("verify", cwd=bare)
    assert done.returncode == 7
    assert f"{base.path.relative_to(bare)}: changed: content.txt\n" in done.stdout
    assert "damaged: 1 of 2 artifacts" in done.stderr
    assert f"rm -r {base.path.relative_to(bare)}" in done.stderr
    assert slmctl("verify", prepared.path).returncode == 0
    elsewhere = slmctl("verify", base.path, cwd=bare.parent)
    assert elsewhere.returncode == 7 and "rm -r" not in elsewhere.stderr
    gone = slmctl("verify", base.path / "gone")
    assert (gone.returncode, f"there is no {base.path / 'gone'}" in gone.stderr) == (2, True)


def test_show_draws_the_ancestry(bare: Path) -> None:
    base, prepared = leave(bare, "pull"), leave(bare, "prepare")
    done = slmctl("show", prepared.path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"prepared  {prepared.short_id}")
    assert lines[1].startswith(f"└─ base  {base.short_id}")
    shown = json.loads(slmctl("show", prepared.path, "--json").stdout)
    assert shown["digest"] == prepared.digest
    assert [parent["digest"] for parent in shown["inputs"]] == [base.digest]
    adapter = leave(bare, "finetune")  # of both, so one of them comes twice
    assert slmctl("show", adapter.path).stdout.count(f"base  {base.short_id}  (above)\n") == 1


def test_reader_that_has_enough_is_no_failure(bare: Path) -> None:
    code = f"{SCRIPT} config schema | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", code], cwd=bare, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Results


@pytest.mark.parametrize(("stage", "stands"), [("publish", False), ("evaluate", True)])
def test_of_a_refused_stage_a_report_alone_is_a_result(
    bare: Path, monkeypatch: pytest.MonkeyPatch, stage: str, stands: bool
) -> None:
    # a release that must not leave the machine once stood on stdout, from which a script would have
    # taken it
    def refuse(self: object, made: Artifact, *, current: bool) -> None:
        raise GateError("refused")

    made = handmade.make(bare / "runs" / LEAVES[stage] / "3f9a1c2e0000")
    stages = [SimpleNamespace(name=name, current=False) for name in CHAIN[: CHAIN.index(stage) + 1]]
    monkeypatch.setattr(
        plan, "plan", lambda *names: SimpleNamespace(require=lambda: None, stages=stages, seconds=0)
    )
    monkeypatch.setattr(run_plan, "summary", lambda planned: ())
    monkeypatch.setattr(runner, "make", lambda project, name: runner.Outcome(made, False, 0.0))
    for name in ("finetune", "publish"):
        monkeypatch.setattr(stage_class(name), "doubt", lambda self: None)
    for name in LEAVES:
        monkeypatch.setattr(
            stage_class(name),
            "after",
            refuse if name == stage else lambda self, made, current: None,
        )
    done = CliRunner().invoke(cli, ["-C", str(bare), "run", "--until", stage])
    assert isinstance(done.exception, GateError)
    assert done.stdout == (f"{made.path}\n" if stands else "")


def test_an_endpoint_is_not_asked_beside_answers_that_are_named(bare: Path) -> None:
    made = handmade.make(bare / "runs" / "predictions" / "3f9a1c2e0000")
    words = ["calibrate", "--endpoint", "large", "--predictions", str(made.path)]
    done = CliRunner().invoke(cli, ["-C", str(bare), *words])
    assert (
        isinstance(done.exception, UsageError)
        and "--predictions names others" in done.exception.message
    )
