"""The first page: folders, quality, graphics card, plate solver, and what the run would make and cost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QButtonGroup, QGridLayout, QMenu, QVBoxLayout, QWidget

from zemosaic_core.errors import SettingsError
from zemosaic_ui.jobs import count_files
from zemosaic_ui.presets import QUALITY_PRESETS, apply_quality, current_quality
from zemosaic_ui.qt.form_fields import PathEdit
from zemosaic_ui.qt.job import Job
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.switch import Switch
from zemosaic_ui.qt.widgets import Card, button, label, restyle, row, tool_button
from zemosaic_ui.variables import overruling

__all__ = ["StartPage"]


class StartPage(QWidget):
    """Everything a first run needs, and nothing else."""

    open_page = Signal(str)
    demo_ready = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._count: tuple[str, int, int] | None = None
        self._gpu: dict[str, Any] | None = None
        self._solvers: list[dict[str, Any]] | None = None
        self._plan: dict[str, Any] | None = None
        self._plan_problem = self._solver_problem = ""
        self.gpu_job, self.doctor_job, self.plan_job, self.demo_job = (Job(self) for _ in range(4))
        self.title = label("title")
        self.subtitle = label("muted", wrap=True)
        self.folders = self._make_folders()
        self.quality = self._make_quality()
        self.compute = self._make_compute()
        self.solver = self._make_solver()
        self.plan = self._make_plan()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(24, 18, 24, 18)
        layout.setSpacing(12)
        layout.addWidget(self.title)
        layout.addWidget(self.subtitle)
        layout.addWidget(self.folders)
        grid = QGridLayout()
        grid.setSpacing(12)
        grid.addWidget(self.quality, 0, 0)
        grid.addWidget(self.compute, 0, 1)
        grid.addWidget(self.solver, 1, 0)
        grid.addWidget(self.plan, 1, 1)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        layout.addLayout(grid)
        layout.addStretch(1)
        session.form.on_change(self._on_form_changed)
        self._count_timer = QTimer(self)
        self._count_timer.setInterval(80)
        self._count_timer.timeout.connect(self._on_count_tick)
        self._connect_jobs()
        self.retranslate()
        self.retheme()

    # ------------------------------------------------------------------ building

    def _make_folders(self) -> Card:
        card = Card()
        self.input_label, self.output_label = label(), label()
        self.input = PathEdit(self.session, is_folder=True)
        self.output = PathEdit(self.session, is_folder=True)
        self.input.line.setObjectName("input_dir")
        self.output.line.setObjectName("output_dir")
        self.input_recent, self.output_recent = tool_button(), tool_button()
        for control, recent, key, kind in (
            (self.input, self.input_recent, "input_dir", "inputs"),
            (self.output, self.output_recent, "output_dir", "outputs"),
        ):
            control.edited.connect(lambda path, key=key: self.session.form.set(key, path))
            menu = QMenu(recent)
            menu.aboutToShow.connect(lambda menu=menu, key=key, kind=kind: self._fill_recent(menu, key, kind))
            recent.setMenu(menu)
            recent.setPopupMode(recent.ToolButtonPopupMode.InstantPopup)
        self.input_note = label("faint", wrap=True)
        self.output_note = label("faint", wrap=True)
        grid = QGridLayout()
        grid.setHorizontalSpacing(12)
        grid.setVerticalSpacing(4)
        grid.addWidget(self.input_label, 0, 0)
        grid.addLayout(row(self.input, self.input_recent), 0, 1)
        grid.addWidget(self.input_note, 1, 1)
        grid.addWidget(self.output_label, 2, 0)
        grid.addLayout(row(self.output, self.output_recent), 2, 1)
        grid.addWidget(self.output_note, 3, 1)
        grid.setColumnStretch(1, 1)
        card.body.addLayout(grid)
        self.demo = button("quiet", self._on_demo)
        self.demo_note = label("faint", wrap=True)
        card.body.addLayout(row(self.demo, self.demo_note, None))
        self.input_label.setBuddy(self.input.line)
        self.output_label.setBuddy(self.output.line)
        return card

    def _make_quality(self) -> Card:
        card = Card()
        self.quality_buttons = {}
        group = QButtonGroup(self)
        line = row()
        for name in QUALITY_PRESETS:
            choice = button("quality", lambda name=name: apply_quality(self.session.form, name))
            choice.setCheckable(True)
            group.addButton(choice)
            line.addWidget(choice, 1)
            self.quality_buttons[name] = choice
        self._quality_group = group
        card.body.addLayout(line)
        self.quality_note = label("muted", wrap=True)
        card.body.addWidget(self.quality_note)
        card.body.addStretch(1)
        return card

    def _make_compute(self) -> Card:
        card = Card()
        self.gpu_switch = Switch()
        self.gpu_switch.setObjectName("use_gpu_phase5")
        self.gpu_switch.toggled.connect(lambda on: self.session.form.set("use_gpu_phase5", on))
        self.gpu_state = label(wrap=True)
        self.gpu_detail = label("faint", wrap=True)
        card.body.addWidget(self.gpu_switch)
        card.body.addWidget(self.gpu_state)
        card.body.addWidget(self.gpu_detail)
        card.body.addStretch(1)
        return card

    def _make_solver(self) -> Card:
        card = Card()
        self.solver_state = label(wrap=True)
        self.solver_link = button("quiet", lambda: self.open_page.emit("solver"))
        card.body.addWidget(self.solver_state)
        card.body.addStretch(1)
        card.body.addLayout(row(self.solver_link, None))
        return card

    def _make_plan(self) -> Card:
        card = Card()
        self.plan_state = label("muted", wrap=True)
        self.plan_button = button("", self.ask_plan)
        card.body.addWidget(self.plan_state)
        card.body.addStretch(1)
        card.body.addLayout(row(self.plan_button, None))
        return card

    def _connect_jobs(self) -> None:
        for job in (self.gpu_job, self.doctor_job, self.plan_job, self.demo_job):
            job.said.connect(self._on_said)
        self.gpu_job.ended.connect(self._on_gpu_ended)
        self.doctor_job.ended.connect(self._on_doctor_ended)
        self.plan_job.ended.connect(self._on_plan_ended)
        self.demo_job.ended.connect(self._on_demo_ended)

    # ------------------------------------------------------------------ asking the machine

    def ask_machine(self) -> None:
        """Look for graphics card and plate solvers in the background."""
        config = self.session.form.to_mapping()
        self.gpu_job.start("gpu_facts", config)
        self._solvers = None
        self.doctor_job.start("doctor", config, str(self.session.config_path))
        self._show_machine()

    def ask_plan(self) -> None:
        """Ask for the plan of the run in the background."""
        form = self.session.form
        self._plan, self._plan_problem = None, ""
        try:
            config = form.settings().to_mapping()
        except SettingsError as error:
            self._plan_problem = self.session.texts.message(error.key, error.values)
            self._show_plan()
            return
        output = form["output_dir"] or str(Path(form["input_dir"] or ".") / "mosaic")
        self.plan_job.start("plan", form["input_dir"], output, config)
        self._show_plan()

    def close_jobs(self) -> None:
        """End every background job; the window is closing."""
        for job in (self.gpu_job, self.doctor_job, self.plan_job, self.demo_job):
            job.cancel()
        self._count_timer.stop()

    # ------------------------------------------------------------------ answers

    def _on_said(self, kind: str, payload: Any) -> None:
        match kind:
            case "gpu":
                self._gpu = payload
                self._show_machine()
            case "finding":
                if payload["topic"] == "solver":
                    self._solvers = [*(self._solvers or []), payload]
                    self._show_machine()
            case "plan":
                self._plan = payload
            case "error":
                key, values = payload
                self._plan_problem = self.session.texts.message(key, values)
                self.demo_note.setText(self._plan_problem)
            case "say":
                key, values = payload
                self.demo_note.setText(self.session.texts.message(key, values))
            case "demo":
                self._take_demo(payload)

    def _on_gpu_ended(self, error: str) -> None:
        if error and self._gpu is None:
            self._gpu = {"ok": False, "reason_key": "ui_probe_failed", "detail": error.splitlines()[-1]}
        self._show_machine()

    def _on_doctor_ended(self, error: str) -> None:
        self._solver_problem = error.splitlines()[-1] if error else ""
        self._solvers = self._solvers or []
        self._show_machine()

    def _on_plan_ended(self, error: str) -> None:
        if error and self._plan is None and not self._plan_problem:
            self._plan_problem = error.splitlines()[-1]
        self._show_plan()

    def _on_demo_ended(self, error: str) -> None:
        self.demo.setEnabled(True)
        if error:
            self.demo_note.setText(error.splitlines()[-1])

    def _on_demo(self) -> None:
        from PySide6.QtWidgets import QFileDialog

        folder = QFileDialog.getExistingDirectory(self, self.session.texts("ui_demo_folder"))
        if folder:
            self.make_demo(folder)

    def make_demo(self, folder: str, n_frames: int = 12) -> None:
        """Write a made-up night into a folder and choose it as input."""
        self.demo.setEnabled(False)
        self.demo_note.setText(self.session.texts("ui_demo_writing"))
        self.demo_job.start("demo_night", folder, n_frames)

    def _take_demo(self, frames: str) -> None:
        self.session.form.set("output_dir", str(Path(frames).parent / "mosaic"))
        self.choose_input(frames)
        self.demo_note.setText(self.session.texts("ui_demo_done"))
        self.demo_ready.emit()

    # ------------------------------------------------------------------ folders

    def choose_input(self, path: str) -> None:
        """Take a folder as input; an output folder is proposed beside it when there is none."""
        form = self.session.form
        form.set("input_dir", path)
        if not form["output_dir"]:
            form.set("output_dir", str(Path(path).with_name(Path(path).name + "_mosaic")))

    def _fill_recent(self, menu: QMenu, key: str, kind: str) -> None:
        menu.clear()
        recent = getattr(self.session.memory, f"recent_{kind}")
        for path in recent:
            shown = path if len(path) <= 90 else f"{path[:30]} … {path[-55:]}"
            menu.addAction(shown, lambda path=path: self.session.form.set(key, path))
        if not recent:
            menu.addAction(self.session.texts("ui_recent_none")).setEnabled(False)

    def _on_form_changed(self, key: str) -> None:
        if key in ("input_dir", "output_dir"):
            self._show_folders()
            self._plan, self._plan_problem = None, ""
            self._show_plan()
        elif key in ("use_gpu_phase5", "solver_method"):
            self._show_machine()
        self._show_quality()

    def _show_folders(self) -> None:
        form, text = self.session.form, self.session.texts
        for control, key in ((self.input, "input_dir"), (self.output, "output_dir")):
            if control.line.text() != form[key]:
                control.line.setText(form[key])
            control.line.setToolTip(form[key])
        folder = form["input_dir"]
        if not folder:
            self.input_note.setText(text("ui_input_hint"))
        elif not Path(folder).is_dir():
            self.input_note.setText(text("ui_input_missing"))
        elif self._count is not None and self._count[0] == folder:
            _, number, size = self._count
            key = "ui_input_found" if number else "ui_input_empty"
            self.input_note.setText(text(key, n=number, size=text.size(size)))
        else:
            self.input_note.setText(text("ui_input_counting"))
            threading.Thread(target=self._count_in_thread, args=(folder,), daemon=True).start()
            self._count_timer.start()
        output = form["output_dir"]
        resumes = bool(output) and (Path(output) / ".zemosaic_state").is_dir()
        self.output_note.setText(text("ui_output_resumes") if resumes else text("ui_output_hint"))

    def _count_in_thread(self, folder: str) -> None:
        self._count = (folder, *count_files(folder))

    def _on_count_tick(self) -> None:
        if self._count is not None and self._count[0] == self.session.form["input_dir"]:
            self._count_timer.stop()
            self._show_folders()

    # ------------------------------------------------------------------ showing

    def _show_quality(self) -> None:
        name = current_quality(self.session.form)
        self._quality_group.setExclusive(False)
        for key, choice in self.quality_buttons.items():
            choice.setChecked(key == name)
        self._quality_group.setExclusive(name != "custom")
        self.quality_note.setText(self.session.texts(f"ui_quality_{name}_note"))

    def _show_machine(self) -> None:
        text, form = self.session.texts, self.session.form
        self.gpu_switch.blockSignals(True)
        self.gpu_switch.setChecked(form["use_gpu_phase5"])
        self.gpu_switch.blockSignals(False)
        gpu = self._gpu
        style, line, detail = "muted", text("ui_gpu_looking"), ""
        winner = overruling("use_gpu_phase5")
        if winner is not None:
            detail = text("ui_overruled", variable=winner[0], value=winner[1])
        if not form["use_gpu_phase5"] and winner is None:
            line = text("ui_gpu_switched_off")
        elif gpu is not None and gpu["ok"]:
            style = "good"
            line = text("ui_gpu_ready", name=gpu["name"], size=text.size(gpu.get("total_bytes", 0)))
            if gpu.get("wanted"):
                detail = text.message("gpu_other_card", gpu)
        elif gpu is not None:
            # Nothing is wrong with a computer that has no such card, nor when somebody switched it off.
            style = "muted" if gpu.get("calm") else "warn"
            line = text("ui_gpu_unusable", reason=text.message(gpu["reason_key"], gpu))
            # What the system says of a missing driver helps nobody who has no such card.
            said = "" if gpu.get("calm") or gpu["detail"] in line else gpu["detail"]
            detail = detail or said
        restyle(self.gpu_state, style)
        self.gpu_state.setText(line)
        self.gpu_detail.setText(detail)
        self.gpu_detail.setVisible(bool(detail))
        self._show_solvers()

    def _show_solvers(self) -> None:
        text = self.session.texts
        method = self.session.form["solver_method"]
        lines = [text("ui_solver_chosen", name=text(f"option.solver_method.choice.{method.lower()}"))]
        if self._solvers is None:
            lines.append(text("ui_solver_looking"))
        for finding in self._solvers or []:
            mark = {"ok": "✔", "warn": "!", "fail": "✖"}.get(finding["state"], "·")
            lines.append(f"{mark}  {text.message(finding['key'], {**finding['values'], 'path': ''}).strip()}")
        if self._solver_problem:
            lines.append(self._solver_problem)
        self.solver_state.setText("\n".join(lines))

    def _show_plan(self) -> None:
        text = self.session.texts
        self.plan_button.setEnabled(bool(self.session.form["input_dir"]) and not self.plan_job.is_running)
        if self.plan_job.is_running:
            self.plan_state.setText(text("ui_plan_working"))
        elif self._plan_problem:
            self.plan_state.setText(self._plan_problem)
        elif self._plan is None:
            self.plan_state.setText(text("ui_plan_hint"))
        else:
            self.plan_state.setText(self._plan_text(self._plan))

    def _plan_text(self, facts: dict[str, Any]) -> str:
        text = self.session.texts
        height, width = facts["canvas_hw"]
        at_least = facts["outline"]["known_from"] == "targets"
        guessed = "ui_plan_canvas_at_least" if at_least else "ui_plan_canvas_guessed"
        exact = "ui_plan_canvas" if facts["canvas_exact"] else guessed
        lines = [
            text(
                "ui_plan_frames",
                n=facts["n_frames"],
                left_out=len(facts["left_out"]),
            ),
            text(exact, width=width, height=height),
            *([text("plan.far", n=far)] if (far := facts["outline"].get("n_far", 0)) else []),
            text(
                "ui_plan_cost",
                memory=text.size(facts["peak_bytes"]),
                disk=text.size(max(0, facts["disk_bytes"])),
                time=text.about(facts["seconds"], 0.4),
            ),
        ]
        machine = facts.get("machine", {})
        if machine and facts["peak_bytes"] > machine["memory_bytes"]:
            lines.append(text("ui_plan_memory_short", free=text.size(machine["memory_bytes"])))
        if machine and facts["disk_bytes"] > machine["disk_bytes"]:
            lines.append(text("ui_plan_disk_short", free=text.size(machine["disk_bytes"])))
        return "\n".join(lines)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.title.setText(text("ui_start_title"))
        self.subtitle.setText(text("ui_start_subtitle"))
        self.folders.heading.setText(text("group.folders"))
        self.input_label.setText(text("option.input_dir.label"))
        self.output_label.setText(text("option.output_dir.label"))
        self.input.retranslate(text("option.input_dir.label"))
        self.output.retranslate(text("option.output_dir.label"))
        for recent in (self.input_recent, self.output_recent):
            recent.setToolTip(text("ui_recent"))
            recent.setAccessibleName(text("ui_recent"))
        self.demo.setText(text("ui_demo"))
        self.quality.heading.setText(text("ui_quality"))
        for name, choice in self.quality_buttons.items():
            choice.setText(text(f"ui_quality_{name}"))
            choice.setToolTip(text(f"ui_quality_{name}_note"))
        self.compute.heading.setText(text("ui_compute"))
        self.gpu_switch.setText(text("option.use_gpu_phase5.label"))
        self.gpu_switch.setToolTip(text("option.use_gpu_phase5.help"))
        self.solver.heading.setText(text("group.solver"))
        self.solver_link.setText(text("ui_solver_settings"))
        self.plan.heading.setText(text("ui_plan"))
        self.plan_button.setText(text("ui_plan_ask"))
        self._show_folders()
        self._show_quality()
        self._show_machine()
        self._show_plan()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        for control in (self.input, self.output):
            control.retheme()
        for recent in (self.input_recent, self.output_recent):
            recent.setIcon(self.session.icon("recent", "muted"))
        self.demo.setIcon(self.session.icon("solver", "muted"))
