"""The benchmark: fair turns, the right ratios, exponents of known costs, and the command."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from fairmix_jax.lab import benchmark
from fairmix_jax.lab.benchmark import timing
from fairmix_jax.lab.benchmark.subject import INPUT_GRADIENT
from fairmix_jax.lab.benchmark.throughput import exponents, tables
from fairmix_jax.lab.configs.benchmarks import attack_scaling, attack_throughput
from fairmix_jax.runtime import cpu
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.tables import markdown


@pytest.fixture
def clock(monkeypatch):
    """A clock that contenders move themselves; returns the list of what ran."""
    now, ran = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def contender(name, seconds):
        def run():
            ran.append(name)
            now[0] += seconds[0] if isinstance(seconds, list) else seconds

        return run

    return contender, ran


def test_contenders_take_turns_between_runs_of_the_reference(clock):
    contender, ran = clock
    contenders = {"a": contender("a", 2.0), "b": contender("b", 6.0)}
    timings = timing.interleaved(contenders, contender("r", 4.0), rounds=3)
    assert "".join(ran).endswith("rrarrbrr" * 3)  # the reference once to settle, then timed
    assert timings["a"].seconds.tolist() == [2.0] * 3 and timings["a"].ratio.tolist() == [0.5] * 3
    assert timings["b"].ratio.tolist() == [1.5] * 3


def test_a_slower_machine_changes_seconds_but_no_ratio(clock):
    contender, _ = clock
    speed = [[2.0], [6.0], [4.0]]
    a, b, reference = (contender(name, speed[i]) for i, name in enumerate("abr"))
    before = timing.interleaved({"a": a, "b": b}, reference, rounds=1)
    for part in speed:
        part[0] *= 3
    after = timing.interleaved({"a": a, "b": b}, reference, rounds=1)
    assert after["a"].seconds.tolist() == [6.0] and before["a"].seconds.tolist() == [2.0]
    assert [t.ratio.tolist() for t in after.values()] == [t.ratio.tolist() for t in before.values()]


def test_what_a_contender_leaves_behind_does_not_count(clock):
    contender, _ = clock
    speed = [4.0]
    quick = contender("r", speed)

    def reference():
        quick()
        speed[0] = 4.0

    def unfair():
        contender("a", 2.0)()
        speed[0] = 9.0

    timings = timing.interleaved({"a": unfair}, reference, rounds=2)
    assert timings["a"].ratio.tolist() == [0.5, 0.5]


def test_quick_contenders_are_averaged_over_many_calls(clock):
    contender, ran = clock
    timings = timing.interleaved({"a": contender("a", 0.01)}, contender("r", 4.0), rounds=1)
    (turn,) = re.findall(r"rr(a+)rr$", "".join(ran))
    assert 29 <= len(turn) <= 30
    assert timings["a"].seconds == pytest.approx([0.01])


def member(seconds, *, steps=(5,), images=32, parameters=1000):
    return {
        "batch_size": images,
        "parameters": parameters,
        "timings": {
            f"pgd{n}": {
                "passes": {"gradient": n},
                "ratio": {"median": seconds(n, images, parameters)},
                "seconds": {"median": seconds(n, images, parameters)},
            }
            for n in steps
        }
        | {"square2": {"passes": {"forward": 2}, "seconds": {"median": 1.0}}},
    }


def test_exponents_of_a_known_cost():
    def cost(steps, images, parameters):
        return 3 * steps**1.1 * images * parameters**0.9

    members = {
        "first": member(cost, steps=(5, 10, 40)),
        **{str(i): member(cost, images=i) for i in (64, 128, 512)},
        **{str(p): member(cost, parameters=p) for p in (2000, 4000)},
        "other in both": member(lambda *_: 1.0, images=64, parameters=2000),
    }
    fitted = exponents(members)
    assert {name: round(fit["exponent"], 6) for name, fit in fitted.items()} == {
        "steps": 1.1, "images": 1.0, "parameters": 0.9,
    }  # fmt: skip
    assert (fitted["images"]["from"], fitted["images"]["to"]) == (32, 512)
    del members["2000"]
    assert "parameters" not in exponents(members)  # two points make any line
    assert exponents({"no pgd": member(cost, steps=())}) == {}


@pytest.fixture(scope="module")
def throughput(tmp_path_factory):
    config = attack_throughput.get_config("smoke").unlock()
    config.benchmark.attacks, config.benchmark.rounds = "pgd2,square2", 3
    config.model.width = 2
    directory = tmp_path_factory.mktemp("throughput")
    return benchmark.run(config, directory), directory


def test_efficiency_is_the_unavoidable_over_the_measured(throughput):
    result, directory = throughput
    ((_, facts),) = result["members"].items()
    timings = facts["timings"]
    assert jax.config.jax_enable_compilation_cache
    ratio = {name: part["ratio"]["median"] for name, part in timings.items()}
    square, step = timings["square2"], timings["training step, pgd_at"]
    assert square["passes"] == {"forward": 4, "gradient": 0, "parameter": 0}  # clean, start, 2
    needed = 4 * ratio["forward"] / ratio["square2"]
    assert square["efficiency"]["median"] == pytest.approx(needed)
    assert step["passes"] == {"forward": 0, "gradient": 2, "parameter": 1}
    needed = 2 * ratio[INPUT_GRADIENT] + ratio["parameter gradient"]
    assert step["efficiency"]["median"] == pytest.approx(needed / ratio["training step, pgd_at"])
    saved = json.loads((directory / "benchmark.json").read_text())
    assert saved["members"] == result["members"] and "versions" in saved["provenance"]
    assert (directory / "benchmark.png").stat().st_size > 1000
    assert "square2" in (directory / "benchmark.md").read_text()
    assert len(tables(result)) == 1


def test_an_unknown_attack_is_named(tmp_path):
    config = attack_scaling.get_config("smoke").unlock()
    config.model.depth, config.benchmark.attacks, config.sweep = 10, "pgd2,deepfool3", ""
    with pytest.raises(UsageError, match=r"benchmark\.attacks: 'deepfool3' is unknown"):
        benchmark.run(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("attack_throughput", 0, "throughput"),
        ("attack_throughput", 1, "peers"),
        ("attack_autoattack", 1, "autoattack"),
        ("attack_scaling", -1, "scaling"),
    ],
)
def test_published_tables_are_those_of_the_results(name, number, kind):
    result = json.loads((ROOT / "results" / f"{name}.json").read_text())
    text = (ROOT / "docs" / "performance" / "figures.md").read_text()
    published = text.split(f"<!-- table: {kind} -->\n")[1]
    assert published.startswith(markdown(tables(result)[number]) + "\n")


def test_the_short_table_of_speed_is_read_off_the_long_ones():
    result = json.loads((ROOT / "results" / "attack_throughput.json").read_text())
    throughput, peers = (table.rows for table in tables(result)[:2])
    text = (ROOT / "docs" / "performance.md").read_text()
    for network in ("small_cnn-16, 128", "preact_resnet-18-16, 128"):
        (efficiency,) = (row[8] for row in throughput if row[:2] == [network, "pgd20"])
        faster = {(row[1], row[2]): row[5] for row in peers if row[0] == network}
        others = ("plain flax, fori_loop", "Foolbox (JAX)", "torchattacks")
        cells = [network, efficiency, *(faster["pgd20", who] for who in others)]
        cells.append(faster["training step, pgd_at", "PyTorch, channels_last"])
        assert f"| {' | '.join(cells)} |" in text


@pytest.mark.parametrize("flags", ["", "--xla_dump_to=x"])
def test_tune_adds_its_flag_once(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert cpu.tune() and cpu.tune()
    wanted = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    assert cpu.os.environ["XLA_FLAGS"] == f"{flags} {wanted}".strip()


def test_tune_leaves_the_users_choice_and_unknown_libraries(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")
    assert not cpu.tune()
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(cpu.jaxlib.version, "__version_info__", (0, 99, 0))
    assert not cpu.tune() and cpu.os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(("options", "by_ynnpack"), [(cpu.TUNED, 0), (cpu.DEFAULT, 1)])
def test_options_choose_the_library(options, by_ynnpack):
    def convolve(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 16, 16, 32), (3, 3, 32, 32))]
    program = jax.jit(convolve, compiler_options=options).lower(*shapes).compile()
    assert program.as_text().count('"__ynn_fusion"') == by_ynnpack
