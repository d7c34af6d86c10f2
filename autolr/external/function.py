"""A search around a training function of the user's own.

def train(candidate, report):
    torch.manual_seed(report.seed)
    model = get_peft_model(load(), LoraConfig(r=candidate.rank, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    groups = autolr.parameter_groups(model, lr_q=candidate.lr_q, ratio=candidate.ratio)
    optimizer = torch.optim.AdamW(groups)
    for step in range(1, report.steps + 1):
        ...
        if step % 50 == 0:
            report(step, loss_on_validation(model))
            if report.should_stop():
                break
    return losses_on_test(model)

result = autolr.tune(train, lr=2e-4, steps=400)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autolr.data.tables import OWN
from autolr.errors import RunError
from autolr.external.driver import FunctionDriver, TrainFunction
from autolr.model.device import choose_device
from autolr.progress.callbacks import Callback
from autolr.progress.state import observed
from autolr.rundir.folder import RunFolder
from autolr.rundir.result import SearchResult
from autolr.schema import yaml_io
from autolr.schema.study import Study
from autolr.tuner.engine import Engine
from autolr.tuner.propose.space import SearchSpace
from autolr.tuner.recipes import build_recipe
from autolr.tuner.run import default_folder
from autolr.tuner.stages import stages
from autolr.tuner.work import Work
from autolr.tuner.workers.leases import MAIN, Leases

# Trainings are not packed here, and begin anew at each stage. So fewer are spent than `autolr search` spends.
BASELINES = ["default", "same_lr"]


def tune(
    function: TrainFunction,
    *,
    lr: float,
    steps: int,
    trials: int = 16,
    out: str | Path | None = None,
    callback: Callback | None = None,
    **study: Any,
) -> SearchResult:
    """Search λ, η_V and the rank around your own training function, and write the recipe of the best.

    The same engine as `autolr search`: sampler, pruner, stages, run folder and report. But one training at a time,
    and all of it yours: model, data, loop. Each stage calls the function anew: AutoLR cannot resume what it trained.
    So the default is two stages: trials of `steps`, and the best two to the end of the full run, if that is longer.
    Called again, a search resumes where it stopped; whether the function has changed since is not checked.

    Args:
        function: is called with a `Candidate` (`lr_q`, `lr_v`, `ratio`, `rank`, `loraplus_lr_ratio`, `targets`,
            `kind`) and a `Report`. It trains `report.steps` optimizer steps with seed `report.seed`, calls
            `report(step, loss)` with the loss on examples it does not train on, now and then and at the last step,
            and returns when
            `report.should_stop()` says so. At its end it returns the losses of examples that nothing is chosen by,
            one for each or their mean, at least where `report.is_tested`; None: the verdict rests on the losses
            reported, which have chosen the winner.
        lr: the rate you train with now: λ = 1 at this rate is the default in the comparison, and the search
            looks a factor of ten around it.
        steps: of a trial.
        trials: a total: a resumed search counts what it has.
        out: the run folder; None: `runs/<name>-<identity>`.
        callback: is told what happens.
        study: anything else of a study, such as `space={"rank": [8, 16], "ratio": [1, 2, 4, 8]}`,
            `method={"lora_alpha": 32}`, `search={"rungs": [100, 200]}`, `training={"horizon": {"steps": 1600}}`
            (the full run is longer than the trials), `name=`, `seed=`, `task=` and `model=`, which the recipe names.

    Returns:
        The result, with its recipe.

    Raises:
        DocumentError: the study is wrong; all its problems are listed.
        RunError: the folder holds something else, no trial gave a score, or the function ended too early.
    """
    found = study_around(function, lr, steps, trials, study)
    folder = RunFolder(out if out is not None else default_folder(found))
    horizon = found.training.horizon.steps or steps
    head = found.method.lr_head
    space = SearchSpace.around(found, lr, 0.0 if head == "auto" else head, horizon)
    with folder.lock(), observed(folder, choose_device(None), callback) as callback:
        folder.open(found)
        claims = Leases(folder, folder.optuna(found), MAIN)
        work = Work(found, space, stages(found, horizon), folder, claims, callback)
        with claims.working():
            folder.mend()
            selection = Engine(work, FunctionDriver(function)).run().read_again()
        result, more = selection.result, ""
        if all(record.losses == [record.validation_loss] for record in selection.over_seeds if not record.diverged):
            more = " Judged by the losses that also chose the winner: the function returned none of other examples."
        trained = sum(max(trial.rungs, default=0) for trial in result.ended())
        trained += sum(record.steps for record in result.trainings)
        build_recipe(selection, trained / horizon, more=more).save(folder.recipe)
    return SearchResult.load(folder.path)


def stages_for(steps: int) -> list[dict[str, float]]:
    """Return the stages around a function: trials, and the best two to the end of the full run."""
    return [{"to": steps}, {"to": 1.0, "promote": 2}]


def study_around(function: Any, lr: float, steps: int, trials: int, given: dict[str, Any]) -> Study:
    """Return the study of a search around a function.

    Raises:
        DocumentError: it is wrong; all its problems are listed.
    """
    own = OWN + f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
    last = re.sub(r"[^A-Za-z0-9._-]", "-", own.rpartition(".")[2].rpartition(":")[2]).strip("._-")
    around = {"low": lr / 10, "high": lr * 10} if isinstance(lr, (int, float)) and lr > 0 else lr
    content = {
        "name": last or "tuned",
        "model": own,
        "baselines": BASELINES,
        **given,
        "data": given.get("data", own),
        "space": {"lr_v": around, **given.get("space", {})},
        "training": {"horizon": {"steps": steps}, **given.get("training", {})},
        "search": {"stages": stages_for(steps), "slots": 1, **given.get("search", {})},
        "budget": {"trials": trials, **given.get("budget", {})},
    }
    if content["data"] != own:
        raise RunError(f"data={content['data']!r}: the function reads its data itself; leave it out")
    found = yaml_io.validate(Study, content, "tune")
    horizon = found.training.horizon
    if horizon.steps is None or horizon.steps < steps:
        raise RunError(
            f"training.horizon {horizon.model_dump()}: must be steps, no fewer than those trained ({steps})"
        )
    return found
