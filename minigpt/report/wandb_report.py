"""The comparison as a saved report of Weights & Biases, or its spec as JSON when offline."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from minigpt.errors import UserError, first_line
from minigpt.extras import install
from minigpt.files import write_text
from minigpt.logger.wandb_ import WITH_MINIMUM
from minigpt.report.comparison import LOSS, Comparison
from minigpt.report.continuing import shared_lines
from minigpt.report.designs import choices, varying, word
from minigpt.report.evaluations import LENGTH_CURVES, choose_checkpoint
from minigpt.report.results import by_length, summary
from minigpt.report.tables import to_markdown
from minigpt.report.verdict import verdict
from minigpt.run.design import TEXT

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2.interface as wr

ANSWER_SECONDS = 3.0  # timeout of the connection test, as in logger=wandb
SAVE_SECONDS = 30.0  # timeout of saving
MAX_GROUP_KEYS = 5  # deeper nesting is unreadable


def project_name(text: str) -> tuple[str, str]:
    """Return entity and project of ENTITY/PROJECT. Raises UserError."""
    entity, slash, project = text.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"--wandb={text}: not ENTITY/PROJECT; copy both from the project's URL")
    return entity, project


def require_workspaces() -> None:
    """Raise UserError unless wandb-workspaces is installed."""
    try:
        import wandb_workspaces.reports.v2.interface  # noqa: F401
    except ImportError:
        raise UserError(f"--wandb: needs wandb-workspaces; {install('workspaces')}") from None


def save_report(comparison: Comparison, entity: str, project: str, title: str, spec: Path) -> str:
    """Save the report, or write its spec to a file; return one line for the user.

    Does not prompt for a login, and stops after SAVE_SECONDS.
    """
    reason = _why_not_online()
    if reason is None:
        answer: SimpleQueue[tuple[str | None, str]] = SimpleQueue()
        # In a thread: requests to a server that drops packets have no timeout.
        work = threading.Thread(
            target=lambda: answer.put(_save(comparison, entity, project, title)), daemon=True
        )
        work.start()
        try:
            url, reason = answer.get(timeout=SAVE_SECONDS)
        except Empty:
            url, reason = None, f"no answer in {SAVE_SECONDS:g} s"
        if url is not None:
            return f"W&B report: {url}"
    report = build(comparison, entity, project, title, online=False)
    content = report._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    write_text(spec, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return f"W&B report not saved: {reason}; its spec is in {spec}"


def build(comparison: Comparison, entity: str, project: str, title: str, online: bool) -> wr.Report:
    """Build the report: panels over the compared runs, grouped by the keys that differ.

    The run set names its project only if `online`, since the library then looks it up. Without a
    name it uses the report's project.
    """
    import wandb_workspaces.reports.v2.interface as wr

    blocks: list[Any] = [wr.P(line) for line in shared_lines(comparison)]
    for group in comparison.groups:
        blocks += [wr.H1(text=group.heading)] if group.heading else []
        blocks += _blocks(group, entity if online else "", project if online else "")
    return wr.Report(
        entity=entity,
        project=project,
        title=title[:128],  # the limit of W&B
        description="; ".join(map(summary, comparison.groups)),
        blocks=blocks,
        width="fluid",
    )


def _blocks(comparison: Comparison, entity: str, project: str) -> list[Any]:
    """Return what the report shows of the runs of an objective."""
    import wandb_workspaces.reports.v2.interface as wr

    keys = choices(varying([d.config for d in comparison.designs]), comparison.own_keys)
    measure = comparison.measure
    warnings = [wr.UnorderedList(items=[*comparison.warnings])] if comparison.warnings else []
    grouped = ", ".join(word(key) for key in keys) or "design"
    unit = f"{measure.name} in {measure.unit}" if measure != LOSS else f"losses in {LOSS.unit}"
    run_set = wr.Runset(
        entity=entity,
        project=project,
        name="designs" if comparison.is_alone else f"designs, {comparison.objective}",
        filters=_filter(comparison),
        groupby=_grouping(comparison, keys),
    )
    about = wr.P(
        f"Runs are grouped by {grouped}. Lines are means and bands standard deviations "
        f"over seeds, of tokens/s medians and ranges; {unit}. Intervals and tests are in "
        f"the page of `minigpt report`."
    )
    # Without a filter the panels would have the runs of every objective.
    is_separate = comparison.is_alone or bool(_filter(comparison))
    grid = [wr.PanelGrid(runsets=[run_set], panels=_panels(comparison))] if is_separate else []
    return [wr.P(verdict(comparison)), about, *warnings, *grid, *_by_length(comparison)]


def _grouping(comparison: Comparison, keys: Sequence[str]) -> list[str]:
    """Return what W&B groups runs by: the keys that differ, or `design` where they do not suffice.

    They do not if there are too many, or if the texts differ, whose digest is in no key.
    """
    tracked = [key for key in keys if key != TEXT][:MAX_GROUP_KEYS]
    suffices = bool(keys) and len(tracked) == len(keys)
    return [f"config.{key}" for key in tracked] if suffices or comparison.by else ["config.design"]


def _by_length(comparison: Comparison) -> list[Any]:
    """Return the tables of losses by context length, which are measured after W&B's run ended."""
    import wandb_workspaces.reports.v2.interface as wr

    checkpoint = choose_checkpoint(comparison)
    curves = LENGTH_CURVES if checkpoint is not None else ()
    tables = [by_length(comparison, str(checkpoint), curve) for curve in curves]
    return [wr.MarkdownBlock(text=to_markdown(table)) for table in tables if table.rows]


def _filter(comparison: Comparison) -> str:
    """Return a filter for the compared runs; '' if none was tracked."""
    runs = [run for design in comparison.designs for run in design.runs]
    ids = {str(run.manifest["tracker_id"]) for run in runs if run.manifest.get("tracker_id")}
    return f"Metric('ID') in {json.dumps(sorted(ids))}" if ids else ""


def _panels(comparison: Comparison) -> list[Any]:
    """Return curves, then bars, then scatter plots, in two columns: the plots of the page."""
    import wandb_workspaces.reports.v2.interface as wr

    measure = comparison.measure
    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    extremes: dict[str, Any] = {"groupby_aggfunc": "median", "groupby_rangefunc": "minmax"}
    curves = [comparison.validation.key, *(["train_loss"] if comparison.one_tokenizer else [])]
    panels: list[Any] = [
        wr.LinePlot(title=f"{key} by {x}", x=x, y=[key], title_x=x, title_y=key, **spread)
        for key in curves
        for x in ("step", *(["tokens"] if key == "train_loss" else []), "seconds")
    ]
    key = measure.key
    summary_key = f"{key}.last" if key in WITH_MINIMUM else key
    panels += [
        wr.BarPlot(title=key, metrics=[summary_key], **spread),
        wr.BarPlot(title="tokens_per_second", metrics=["tokens_per_second"], **extremes),
        wr.BarPlot(title="peak_memory_bytes", metrics=["peak_memory_bytes"], **spread),
    ]
    y = wr.SummaryMetric(summary_key)
    panels += [
        wr.ScatterPlot(title=f"{key} against {x}", x=wr.SummaryMetric(x), y=y)
        for x in ("flops_per_token", "parameters.total", "seconds")
    ]
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8)
    return panels


def _save(comparison: Comparison, entity: str, project: str, title: str) -> tuple[str | None, str]:
    """Return the URL of the saved report, or None and why it was not saved."""
    try:
        report = build(comparison, entity, project, title, online=True)
        report.save()
        return report.url, ""
    except Exception as error:  # from the library, the client or the network
        return None, first_line(error)


def _why_not_online() -> str | None:
    from minigpt.logger.wandb_checks import why_not_online

    return why_not_online(ANSWER_SECONDS)
