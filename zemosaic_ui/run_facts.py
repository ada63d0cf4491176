"""How a run ended, as one JSON object for other programs; drawn from the same state as the terminal."""

from __future__ import annotations

from typing import Any

from zemosaic_io.manifest import load_json
from zemosaic_pipeline.report import json_value
from zemosaic_ui.run_state import RunState, RunStatus
from zemosaic_ui.texts import Texts

__all__ = ["run_facts"]


def run_facts(state: RunState, texts: Texts, *, seconds: float, exit_code: int) -> dict[str, Any]:
    """Return what `run --json` prints, with only JSON's own types.

    Parameters
    ----------
    state : RunState
        A run that has ended, or one that failed before it began.
    texts : Texts
        The language of every ``text``.

    Returns
    -------
    dict
        ``outcome``: success, failed or cancelled. ``exit_code``. ``run_id``, ``input_dir``, ``output_dir``.
        ``seconds``. ``frames_found`` and ``frames_used``: null unless there is a mosaic. ``outputs``: kind to
        full path. ``left_out``: frames not used, each with ``path``, ``key``, ``values`` and ``text``.
        ``warnings``: each with ``key``, ``values`` and ``text``. ``error``: the same, null when all went well.
    """
    report = load_json(state.outputs["report"]) if "report" in state.outputs else {}
    error = None
    if state.status is not RunStatus.SUCCESS:
        error = _said(state.end_key, state.end_values, texts.message(state.end_key, state.end_values))
    facts: dict[str, Any] = {
        "outcome": state.status.value,
        "exit_code": exit_code,
        "run_id": state.run_id,
        "input_dir": state.input_dir,
        "output_dir": state.output_dir,
        "seconds": round(seconds, 3),
        "frames_found": report.get("frames_found"),
        "frames_used": report.get("frames_used"),
        "outputs": state.outputs,
        "left_out": [
            {
                "path": item.path,
                **_said(item.key, item.values, texts.reason(item.key, item.values, item.path)),
            }
            for item in state.left_out
        ],
        "warnings": [
            _said(item.key, item.values, texts.message(item.key, item.values)) for item in state.warnings
        ],
        "error": error,
    }
    plain: dict[str, Any] = json_value(facts)
    return plain


def _said(key: str, values: dict[str, Any], text: str) -> dict[str, Any]:
    return {"key": key, "values": values, "text": text}
