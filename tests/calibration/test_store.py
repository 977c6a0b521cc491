"""Artifacts: identity, the folder they are kept in, and which one an engine uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import halludecode as hd
from halludecode.calibration.store import ArtifactStore, default_folder
from halludecode.core.artifact import Artifact, command, shaping
from halludecode.core.errors import InvalidData, InvalidParameter, UnsupportedStrategy
from halludecode.core.spec import get
from halludecode.engines.hf.engine import HFEngine
from tests.support import families

LACING = get("lacing")


def soft(fill: float = 1.0, width: int = 128) -> dict[str, torch.Tensor]:
    return {"soft": torch.full((3, width), fill)}


def made(fill: float = 1.0, model: str = "m" * 32, strategy: str = "lacing", **more) -> Artifact:
    return Artifact(strategy, {}, model, soft(fill), **more)


@pytest.fixture
def engine(family_engine, tmp_path):
    """A fresh engine on tiny LLaVA with its own folder of artifacts."""
    loaded = family_engine("llava")
    return HFEngine(loaded.model, loaded.processor, artifacts=tmp_path / "kept")


def keep(engine, **more) -> Artifact:
    artifact = made(model=engine.digest, **more)
    engine.calibrator.store.save(artifact)
    return artifact


# Identity ---------------------------------------------------------------------------------------


def test_the_name_tells_strategy_model_and_content():
    one = made()
    assert one.name == f"lacing-mmmmmmmm-{one.digest[:12]}"
    assert made().name == one.name
    assert made(source="elsewhere", notes=("found",)).digest == one.digest
    others = [made(2.0), made(model="n" * 32), made(strategy="zerotuning")]
    others.append(Artifact("lacing", {"tau": 2.0}, "m" * 32, soft()))
    others.append(Artifact("lacing", {}, "m" * 32, {"soft": soft()["soft"].double()}))
    others.append(Artifact("lacing", {}, "m" * 32, {"soft": soft()["soft"].reshape(-1)}))
    assert len({a.digest for a in (one, *others)}) == 7
    assert others[3].name.startswith("lacing-tau_2.0-mmmmmmmm-")
    assert repr(one) == f"Artifact(lacing, {one.digest})", "edits are identified by it"


def test_only_parameters_an_artifact_depends_on_shape_it():
    assert shaping(get("lacing", scale=3.0, pin="x")) == {}
    assert shaping(get("var", p=0.3, tau=3.0)) == {"tau": 3.0}
    assert command(get("lacing", scale=3.0), "some/model") == (
        "halludecode calibrate --model some/model lacing"
    )
    assert command(get("var", tau=3.0)) == 'halludecode calibrate --model M "var(tau=3.0)"'


# The folder -------------------------------------------------------------------------------------


def test_what_is_saved_is_found_again(tmp_path):
    store, artifact = ArtifactStore(tmp_path), made(notes=("7 heads",), source="8 prompts")
    assert store.find(LACING, artifact.model) is None
    path = store.save(artifact)
    assert path.name == f"{artifact.name}.safetensors"
    found = store.find(LACING, artifact.model)
    assert found == artifact
    assert (found.notes, found.source, found.parameters) == (("7 heads",), "8 prompts", {})
    assert torch.equal(found["soft"], artifact["soft"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing half-made is left"


def test_the_last_made_is_used_unless_one_is_pinned(tmp_path):
    store, first, second = ArtifactStore(tmp_path), made(1.0), made(2.0)
    store.save(first)
    store.save(second)
    assert store.find(LACING, first.model) == second
    store.save(first)
    assert store.find(LACING, first.model) == first
    assert store.find(get("lacing", pin=second.name), first.model) == second


def test_another_models_artifact_is_not_used(tmp_path):
    store, other = ArtifactStore(tmp_path), made(model="n" * 32)
    store.save(other)
    assert store.find(LACING, "m" * 32) is None
    with pytest.raises(InvalidParameter, match=r"made for another model \(weights nnnnnnnn"):
        store.find(get("lacing", pin=other.name), "m" * 32)


def test_an_artifact_for_other_parameters_is_not_used(tmp_path):
    store, var = ArtifactStore(tmp_path), get("var", tau=2.0)
    store.save(Artifact("var", shaping(var), "m" * 32, {"dims": torch.tensor([3])}))
    assert store.find(var, "m" * 32)["dims"].tolist() == [3]
    assert store.find(get("var"), "m" * 32) is None


@pytest.mark.parametrize("pin", ["nothing", "../secret", "a/b"])
def test_a_pin_that_names_nothing_lists_what_there_is(tmp_path, pin):
    store, artifact = ArtifactStore(tmp_path), made()
    store.save(artifact)
    (tmp_path.parent / "secret.safetensors").touch()
    with pytest.raises(
        InvalidParameter, match=f"no such artifact in .*; of lacing .* {artifact.name}"
    ):
        store.find(get("lacing", pin=pin), artifact.model)


def test_the_pin_of_another_strategy_is_refused(tmp_path):
    store, other = ArtifactStore(tmp_path), made(strategy="zerotuning")
    store.save(other)
    with pytest.raises(InvalidParameter, match="made for the strategy zerotuning"):
        store.find(get("lacing", pin=other.name), other.model)


def damage_text(path: Path) -> None:
    path.write_text("not tensors")


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def damage_foreign(path: Path) -> None:
    save_file(load_file(path), path)


def damage_content(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [damage_text, damage_cut, damage_foreign, damage_content])
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    store, artifact = ArtifactStore(tmp_path), made()
    path = store.save(artifact)
    damage(path)
    with pytest.raises(InvalidData, match="not a usable artifact") as caught:
        store.find(LACING, artifact.model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "halludecode calibrate" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidData, match="artifacts cannot be written there"):
        ArtifactStore(tmp_path / "file" / "below").save(made())


def test_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("HALLUDECODE_ARTIFACTS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "halludecode" / "artifacts"
    monkeypatch.setenv("HALLUDECODE_ARTIFACTS", os.fspath(tmp_path / "mine"))
    assert ArtifactStore().folder == tmp_path / "mine"
    assert ArtifactStore(tmp_path / "given").folder == tmp_path / "given"


# Engines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lacing", "zerotuning"])
def test_without_its_artifact_a_strategy_is_refused_with_the_command(engine, name):
    with pytest.raises(UnsupportedStrategy) as caught:
        engine.plan(name)
    assert f"run `halludecode calibrate --model {engine.model_id} {name}`." in str(caught.value)


def test_the_canonical_string_and_the_record_name_the_artifact(engine):
    artifact = keep(engine)
    plan = engine.plan("lacing(scale=2)")
    assert plan.canonical == f"lacing(scale=2.0,beta=0.0,attention=joint,pin={artifact.name})"
    assert plan.describe()["artifacts"] == {"lacing": artifact.describe()}
    assert engine.plan(plan.canonical).canonical == plan.canonical
    assert artifact.describe()["digest"] == artifact.digest


def test_an_artifact_is_used_only_where_its_strategy_is_named(engine):
    keep(engine)
    for spec in ("greedy", "vcd", "m3id"):
        assert "artifacts" not in engine.plan(spec).describe()
    (part,) = engine.plan("vcd").parts
    assert part.model_info.artifact is None


def test_the_off_point_needs_no_artifact(engine):
    assert engine.plan("lacing(scale=1)").parts == ()
    assert engine.plan("zerotuning(gamma=1)").parts == ()


def test_one_strategy_twice_with_two_artifacts(engine):
    first, second = keep(engine, fill=1.0), keep(engine, fill=2.0)
    spec = f"lacing(pin={first.name})+lacing(pin={second.name})"
    plan = engine.plan(spec)
    assert [part.model_info.artifact for part in plan.parts] == [first, second]
    request = hd.Request("Why?", [families.pictures()[0]])
    rows = engine.rows(request, spec)
    assert len(rows) == 3, "the artifact's digest is in the row's key"
    assert sorted(float(row.embeds.mean()) for n, row in rows.items() if n != "main") == [1.0, 2.0]


def test_wrong_shapes_are_one_sentence(engine):
    wrong = Artifact("lacing", {}, engine.digest, soft(width=5))
    engine.calibrator.store.save(wrong)
    with pytest.raises(InvalidData, match=r"holds 3x5 as 'soft', and this model needs \*x128"):
        engine.plan("lacing")
    engine.calibrator.store.save(Artifact("zerotuning", {}, engine.digest, soft()))
    with pytest.raises(InvalidData, match="holds nothing as 'heads', and this model needs 6x4"):
        engine.plan("zerotuning")


def test_var_calibrates_itself_and_says_so(engine):
    plan = engine.plan("var(tau=3.0)")
    (told,) = plan.describe()["artifacts"].values()
    assert told["source"].startswith("8 built-in prompts (0 with answers, digest ")
    assert plan.parts[0].model_info.artifact["dims"].dtype == torch.int64
    assert not engine.calibrator.store.folder.exists(), "nothing is kept unasked"


def test_a_kept_artifact_of_var_comes_first(engine):
    var = get("var", tau=3.0)
    kept = Artifact("var", shaping(var), engine.digest, {"dims": torch.tensor([5])}, "by hand")
    engine.calibrator.store.save(kept)
    plan = engine.plan(var)
    assert plan.describe()["artifacts"]["var"]["source"] == "by hand"
    assert plan.parts[0].strategy.sinks(plan.parts[0].model_info) == (5,)


def test_what_cannot_be_calibrated_is_refused(engine):
    with pytest.raises(InvalidParameter, match=r"vcd has nothing to calibrate; these have: .*var"):
        engine.calibrate("vcd")
    with pytest.raises(InvalidParameter, match="one strategy at a time"):
        engine.calibrate("var+lacing")
    with pytest.raises(InvalidParameter, match="give at least one request"):
        engine.calibrate("var", [])
    with pytest.raises(InvalidParameter, match="annotations/captions"):
        engine.calibrate("lacing")


def test_a_new_artifact_takes_over_in_the_same_engine(engine):
    picture = families.pictures()[0]
    old = keep(engine)
    assert engine.plan("lacing").parts[0].model_info.artifact == old
    fresh = engine.calibrate("lacing", [(hd.Request("What?", [picture]), "a cat")])
    assert engine.plan("lacing").parts[0].model_info.artifact == fresh
    assert engine.calibrator.store.find(LACING, engine.digest) == fresh
