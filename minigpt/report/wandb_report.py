"""The same comparison as a saved report of Weights & Biases, or its spec where that cannot be."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from minigpt.errors import UserError, first_line
from minigpt.files import write_text
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.designs import choices, varying, word
from minigpt.report.results import summary

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2.interface as wr

ANSWER_SECONDS = 3.0  # for a sign of life, as logger=wandb waits
SAVE_SECONDS = 30.0  # for the few requests of a save
GROUP_KEYS_AT_MOST = 5  # W&B's own limit of nested groups is soft; more are unreadable


def project_name(text: str) -> tuple[str, str]:
    """Entity and project of ENTITY/PROJECT. Raises UserError."""
    entity, slash, project = text.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"--wandb={text}: not ENTITY/PROJECT; write it as in the project's address")
    return entity, project


def require_workspaces() -> None:
    """Raise UserError unless wandb-workspaces is installed."""
    try:
        import wandb_workspaces.reports.v2.interface  # noqa: F401
    except ImportError:
        raise UserError(
            "--wandb: needs wandb-workspaces; pip install -c constraints.txt -e '.[workspaces]'"
        ) from None


def save_report(comparison: Comparison, entity: str, project: str, title: str, spec: Path) -> str:
    """Save the report, or write its spec; returns one line that says which, and why.

    Never asks, and gives up in time.
    """
    why = _why_not_online()
    if why is None:
        answer: SimpleQueue[tuple[str | None, str]] = SimpleQueue()
        # A thread, because requests to a server that swallows packets know no end.
        work = threading.Thread(
            target=lambda: answer.put(_save(comparison, entity, project, title)), daemon=True
        )
        work.start()
        try:
            url, why = answer.get(timeout=SAVE_SECONDS)
        except Empty:
            url, why = None, f"no answer in {SAVE_SECONDS:g} s"
        if url is not None:
            return f"W&B report: {url}"
    report = build(comparison, entity, project, title, online=False)
    content = report._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    write_text(spec, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return f"W&B report not saved: {why}; its spec is in {spec}"


def build(comparison: Comparison, entity: str, project: str, title: str, online: bool) -> wr.Report:
    """The report: panels over the compared runs, grouped by what makes the designs.

    A set of runs that names its project is looked up by the library, so `online` alone names it;
    without a name it is the report's own project.
    """
    import wandb_workspaces.reports.v2.interface as wr

    # A section that names a variant is grouped by that name, and the rest by their key.
    keys = choices(varying([d.config for d in comparison.designs]), comparison.matched)
    ids = sorted(
        {
            str(run.manifest["tracker_id"])
            for design in comparison.designs
            for run in design.runs
            if run.manifest.get("tracker_id")
        }
    )
    runset = wr.Runset(
        entity=entity if online else "",
        project=project if online else "",
        name="designs",
        filters=f"Metric('ID') in {json.dumps(ids)}" if ids else "",
        groupby=[f"config.{key}" for key in keys if key != "data.text"][:GROUP_KEYS_AT_MOST],
    )
    measure = comparison.measure
    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    curves = [measure.key, *(["train_loss"] if comparison.one_tokenizer else [])]
    panels: list[Any] = [
        wr.LinePlot(title=f"{key} by {x}", x=x, y=[key], title_x=x, title_y=key, **spread)
        for key in curves
        for x in ("step", *(["tokens"] if key == "train_loss" else []), "seconds")
    ]
    panels += [
        wr.BarPlot(title=key, metrics=[key], **spread)
        for key in (measure.key, "tokens_per_second", "peak_memory_bytes")
    ]
    panels += [
        wr.ScatterPlot(
            title=f"{measure.key} against {x}",
            x=wr.SummaryMetric(x),
            y=wr.SummaryMetric(measure.key),
        )
        for x in ("parameters.total", "seconds")
    ]
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (place % 2), y=8 * (place // 2), w=12, h=8)
    warned = [wr.UnorderedList(items=[*comparison.warnings])] if comparison.warnings else []
    grouped = ", ".join(word(key) for key in keys) or "nothing"
    unit = f"{measure.name} in {measure.unit}" if measure != LOSS else f"losses in {LOSS.unit}"
    return wr.Report(
        entity=entity,
        project=project,
        title=title[:128],  # W&B takes no longer one
        description=summary(comparison),
        blocks=[
            wr.P(
                f"Runs are grouped by {grouped}: lines are means, bands standard deviations over "
                f"seeds; {unit}. Intervals and tests are in the page of `minigpt report`."
            ),
            *warned,
            wr.PanelGrid(runsets=[runset], panels=panels),
        ],
        width="fluid",
    )


def _save(comparison: Comparison, entity: str, project: str, title: str) -> tuple[str | None, str]:
    """The address of the saved report, or why it was not saved."""
    try:
        report = build(comparison, entity, project, title, online=True)
        report.save()
        return report.url, ""
    except Exception as error:  # the library's, W&B's client's and the network's
        return None, first_line(error)


def _why_not_online() -> str | None:
    from minigpt.logger.wandb_ import WandbConfig, why_not_online

    return why_not_online(WandbConfig("wandb", "", None, "online", ANSWER_SECONDS))
