"""A study becomes one file and its folders again."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from fairmix_jax import report
from fairmix_jax.report import packed, runs
from fairmix_jax.runtime import json_files
from fairmix_jax.runtime.errors import UsageError

STUDY = ROOT / "results" / "study_tuning"


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def folders(tmp_path):
    packed.unpack(STUDY, tmp_path / "folders")
    return tmp_path / "folders"


def test_unpacked_and_packed_again_not_a_byte_changes(folders, tmp_path):
    packed.pack(folders, tmp_path / "again")
    assert files(tmp_path / "again") == files(STUDY)
    packed.unpack(tmp_path / "again", tmp_path / "folders again")
    assert files(tmp_path / "folders again") == files(folders)
    member = folders / "optim.learning_rate=0.1,mixing.name=none"
    names = ["config.json", "evaluation.json", "metrics.jsonl", "model.json", "run.json"]
    assert sorted(path.name for path in member.iterdir()) == names
    config = (member / "config.json").read_text()
    assert config == json.dumps(json.loads(config), indent=2) + "\n"


def test_reports_read_a_pack_like_its_folders(folders, tmp_path):
    one, other = runs.find(folders), runs.find(STUDY)
    assert [run[1:] for run in one] == [run[1:] for run in other]
    assert other[0].path == STUDY / "learning_rate0.05_none" / "seed100"
    for name, source in (("one", folders), ("other", STUDY)):
        report.write(tmp_path / name, [source], show=False)
    tables = [(tmp_path / name / "report" / "table.md").read_text() for name in ("one", "other")]
    assert tables[0] == tables[1] == (STUDY / "report" / "table.md").read_text()
    assert [run.validations for run in one] == [run.validations for run in other]


def test_only_plain_data_and_the_report_are_packed(folders, tmp_path):
    member = folders / "optim.learning_rate=0.1,mixing.name=none"
    for path in (member / "model.safetensors", member / "report" / "table.md", folders / "log.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("left behind")
    (folders / "report" / "index.html").write_text("left behind")
    (folders / "report" / "training.png").write_bytes(b"taken")
    packed.pack(folders, tmp_path / "again")
    expected = files(STUDY) | {"report/training.png": b"taken"}
    assert files(tmp_path / "again") == expected


def test_members_that_are_not_done_are_said_to_be_so(folders, tmp_path):
    sweep = json.loads((folders / "sweep.json").read_text())
    name = "optim.learning_rate=0.1,mixing.name=none"
    sweep["members"][name] = {"status": "failed", "error": "out of memory"}
    (folders / "sweep.json").write_text(json.dumps(sweep, indent=2) + "\n")
    (folders / name / "evaluation.json").unlink()
    lost = "optim.learning_rate=0.2,mixing.name=none"
    shutil.rmtree(folders / lost)
    packed.pack(folders, tmp_path / "again")
    found = runs.find(tmp_path / "again")
    assert [run.config["optim.learning_rate"] for run in found] == [0.05, 0.05, 0.1, 0.2]
    unfinished = runs.unfinished([tmp_path / "again"])
    assert unfinished == {
        str(tmp_path / "again" / name): "failed: out of memory",
        str(tmp_path / "again" / lost): "done, but it lacks its evaluation.json",
    }
    assert runs.unfinished([folders, folders / "." / ""]) == {
        str(folders / name): "failed: out of memory",
        str(folders / lost): "done, but it lacks its evaluation.json",
    }
    packed.unpack(tmp_path / "again", tmp_path / "back")
    assert files(tmp_path / "back") == files(folders)


@pytest.mark.parametrize(
    ("arms", "second"),
    [
        ({"a": "mixing.name=none", "b c=1": "mixing.name=none optim.learning_rate=0.1"}, "b_c1"),
        ({"a": "mixing.name=none", "b": "mixing.name=same_class"}, "learning_rate0.1_none"),
    ],
)
def test_names_are_those_of_arms_where_these_tell_runs_apart(arms, second, folders, tmp_path):
    config = json.loads((folders / "config.json").read_text())
    config["study"]["arms"] = arms
    (folders / "config.json").write_text(json.dumps(config))
    for rate in ("0.2", *(["0.05"] if "b c=1" in arms else [])):
        shutil.rmtree(folders / f"optim.learning_rate={rate},mixing.name=none")
    packed.pack(folders, tmp_path / "again")
    names = [line["name"] for line in json_files.read_lines(tmp_path / "again" / runs.PACK)]
    assert f"{second}/seed100" in names and len({*names}) == len(names)


def test_a_single_run_is_packed_as_well(folders, tmp_path):
    member = folders / "optim.learning_rate=0.1,mixing.name=none"
    packed.pack(member, tmp_path / "again")
    (run,) = runs.find(tmp_path / "again")
    assert run.evaluation == runs.find(member)[0].evaluation and run.path == tmp_path / "again"


def test_the_command_line(tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "fairmix_jax.report.packed", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert call("unpack", STUDY, tmp_path / "folders").returncode == 0
    assert call("pack", tmp_path / "folders", tmp_path / "again").returncode == 0
    assert files(tmp_path / "again") == files(STUDY)
    wrong = call("unpack", tmp_path, tmp_path / "folders")
    assert wrong.returncode == 2 and "give the folder of a packed study" in wrong.stderr


def test_what_is_no_study_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no run in"):
        packed.pack(tmp_path, tmp_path / "again")
    with pytest.raises(UsageError, match=r"there is no .*runs\.jsonl"):
        packed.unpack(tmp_path, tmp_path / "again")


def test_a_study_without_its_config_is_said_to_be_so(folders, tmp_path):
    (folders / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json is damaged: it is missing; .*--config"):
        packed.pack(folders, tmp_path / "again")


def test_results_are_few_files_with_plain_names():
    paths = [path.relative_to(ROOT) for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert len(paths) <= 60
    assert not [path for path in paths if set(str(path)) & set("=,()[] ") or len(str(path)) > 60]


def test_a_pack_writes_nothing_outside_of_its_target(tmp_path):
    line = {"name": "", "folder": "../evil", "config": {"seed": 0}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match="evil' outside of"):
        packed.unpack(tmp_path, tmp_path / "target" / "here")
    assert not (tmp_path / "target" / "evil").exists()


def test_a_study_is_not_packed_into_itself(folders):
    before = files(folders)
    for target in (folders, folders / "pack"):
        with pytest.raises(UsageError, match="lies in the study; give a folder outside"):
            packed.pack(folders, target)
    assert files(folders) == before


def test_a_pack_is_not_replaced_by_one_that_lacks_its_runs(folders, tmp_path):
    packed.pack(folders, tmp_path / "again")
    before = files(tmp_path / "again")
    shutil.rmtree(folders / "optim.learning_rate=0.1,mixing.name=none")
    with pytest.raises(UsageError, match=r"runs.jsonl. has .optim.* lacks; unpack it there"):
        packed.pack(folders, tmp_path / "again")
    assert files(tmp_path / "again") == before
    packed.pack(folders, tmp_path / "elsewhere")
