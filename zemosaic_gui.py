"""The Tk main window: the same controller and form as the Qt window, small and complete."""

from __future__ import annotations

import sys
import tkinter as tk
from pathlib import Path
from tkinter import filedialog, messagebox, ttk

import zemosaic_config
from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_settings import Settings
from zemosaic_ui.form_model import FormModel
from zemosaic_ui.presets import QUALITY_PRESETS, apply_quality, current_quality
from zemosaic_ui.run_controller import WORKER_TARGET, RunController, RunRequest
from zemosaic_ui.run_state import RunStatus
from zemosaic_ui.texts import Texts, available_languages
from zemosaic_ui.tk.form_view import FormView
from zemosaic_ui.tk.run_view import RunView

__all__ = ["ZeMosaicGUI", "run_tk_main"]

TICK_MS = 80


class ZeMosaicGUI:
    """The Tk application.

    Parameters
    ----------
    root : tk.Tk
        The window to fill.
    config_path : Path, optional
        Settings file; default: the user's.
    worker : str
        ``"module:function"`` of the worker; tests give another one.
    """

    def __init__(self, root: tk.Tk, config_path: Path | None = None, *, worker: str = WORKER_TARGET) -> None:
        self.root = root
        self.config_path = Path(config_path or zemosaic_config.get_config_path())
        self._problem: SettingsError | None = None
        self.form = FormModel(self._read_settings())
        self.texts = Texts(self.form["language"])
        self.controller = RunController(worker)
        self._last_status = RunStatus.IDLE
        self._closing = False
        self._build()
        self.form.on_change(self._on_form_changed)
        self.texts.on_language(self.retranslate)
        self.retranslate()
        if self._problem is not None:
            self.note.set(self.texts.message(self._problem.key, self._problem.values))
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._tick_id = root.after(TICK_MS, self._on_tick)

    def _read_settings(self) -> Settings:
        try:
            return Settings.from_mapping(
                zemosaic_config.read_config(self.config_path, missing_ok=True).values
            )
        except SettingsError as error:
            self._problem = error
            return Settings()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        style = ttk.Style(self.root)
        if style.theme_use() == "default":
            # The oldest look of Tk; the others belong to their systems.
            style.theme_use("clam")
        self.root.geometry("980x680")
        self.root.minsize(720, 480)
        self.tabs = ttk.Notebook(self.root)
        self.tabs.pack(fill="both", expand=True, padx=8, pady=(8, 0))
        self.main_page = ttk.Frame(self.tabs, padding=12)
        self.run_view = RunView(self.tabs, self.texts)
        self.form_view = FormView(self.tabs, self.form, self.texts)
        for page in (self.main_page, self.run_view, self.form_view):
            self.tabs.add(page)
        self._build_main()
        bar = ttk.Frame(self.root, padding=(10, 8))
        bar.pack(fill="x")
        self.note = tk.StringVar()
        ttk.Label(bar, textvariable=self.note).pack(side="left", fill="x", expand=True)
        self.start_button = ttk.Button(bar, command=self.start_run)
        self.stop_button = ttk.Button(bar, command=self.stop_run, state="disabled")
        self.start_button.pack(side="right")
        self.stop_button.pack(side="right", padx=6)

    def _build_main(self) -> None:
        page = self.main_page
        page.columnconfigure(1, weight=1)
        self.labels: dict[str, ttk.Label] = {}
        self.vars: dict[str, tk.StringVar] = {}
        self.browse: list[ttk.Button] = []
        for number, key in enumerate(("input_dir", "output_dir")):
            self.labels[key] = ttk.Label(page)
            self.labels[key].grid(row=number, column=0, sticky="w", pady=4)
            self.vars[key] = tk.StringVar(value=self.form[key])
            ttk.Entry(page, textvariable=self.vars[key]).grid(row=number, column=1, sticky="ew", padx=8)
            self.vars[key].trace_add(
                "write", lambda *_args, key=key: self.form.set(key, self.vars[key].get())
            )
            choose = ttk.Button(page, command=lambda key=key: self._on_browse(key))
            choose.grid(row=number, column=2)
            self.browse.append(choose)
        self.gpu = tk.BooleanVar(value=self.form["use_gpu_phase5"])
        self.gpu_box = ttk.Checkbutton(
            page, variable=self.gpu, command=lambda: self.form.set("use_gpu_phase5", self.gpu.get())
        )
        self.gpu_box.grid(row=2, column=1, sticky="w", padx=8, pady=8)
        self.labels["quality"] = ttk.Label(page)
        self.labels["quality"].grid(row=3, column=0, sticky="w")
        self.quality = ttk.Combobox(page, state="readonly")
        self.quality.grid(row=3, column=1, sticky="w", padx=8, pady=4)
        self.quality.bind("<<ComboboxSelected>>", lambda _event: self._on_quality())
        self.labels["language"] = ttk.Label(page)
        self.labels["language"].grid(row=4, column=0, sticky="w")
        self.language = ttk.Combobox(page, state="readonly")
        self.language.grid(row=4, column=1, sticky="w", padx=8, pady=4)
        self.language.bind("<<ComboboxSelected>>", lambda _event: self._on_language())

    # ------------------------------------------------------------------ controls

    def _on_browse(self, key: str) -> None:
        chosen = filedialog.askdirectory(parent=self.root, initialdir=self.form[key] or None)
        if chosen:
            self.form.set(key, chosen)

    def _on_quality(self) -> None:
        names = list(QUALITY_PRESETS)
        index = self.quality.current()
        if 0 <= index < len(names):
            apply_quality(self.form, names[index])

    def _on_language(self) -> None:
        self.form.set("language", available_languages()[self.language.current()])

    def _on_form_changed(self, key: str) -> None:
        if key in self.vars and self.vars[key].get() != self.form[key]:
            self.vars[key].set(self.form[key])
        if key == "use_gpu_phase5":
            self.gpu.set(self.form[key])
        if key == "language":
            self.texts.set_language(self.form[key])
        self._show_quality()

    def _show_quality(self) -> None:
        name = current_quality(self.form)
        names = list(QUALITY_PRESETS)
        if name in names:
            self.quality.current(names.index(name))
        else:
            self.quality.set(self.texts("ui_quality_custom_note"))

    # ------------------------------------------------------------------ the run

    def start_run(self) -> bool:
        """Start a run; return False when something must be put right first."""
        if self.controller.is_active:
            return False
        text = self.texts
        try:
            settings = self.form.settings()
        except SettingsError as error:
            self.note.set(text.message(error.key, error.values))
            return False
        if not Path(settings.input_dir or "/no/folder").is_dir():
            self.note.set(text("ui_input_needed"))
            return False
        if not settings.output_dir:
            self.note.set(text("ui_output_needed"))
            return False
        self._save()
        told = zemosaic_config.load_old_values(self.config_path)
        config = {**told, **settings.to_mapping(), "gpu_asked_by": "gpu_by_window"}
        request = RunRequest(settings.input_dir, settings.output_dir, config)
        self.controller.start(request)
        self.tabs.select(self.run_view)
        return True

    def stop_run(self) -> None:
        """Ask the run to stop cleanly."""
        self.controller.stop()

    def _on_tick(self) -> None:
        self.controller.poll()
        self.run_view.refresh(self.controller)
        self._show_status()
        if self._closing and not self.controller.is_active:
            self._destroy()
            return
        self._tick_id = self.root.after(TICK_MS, self._on_tick)

    def _show_status(self) -> None:
        state = self.controller.state
        active = self.controller.is_active
        can_stop = state.status in (RunStatus.STARTING, RunStatus.RUNNING)
        self.start_button.configure(state="disabled" if active else "normal")
        self.stop_button.configure(state="normal" if can_stop else "disabled")
        if state.status is not self._last_status:
            self._last_status = state.status
            self.note.set(self.texts(f"ui_status_{state.status.value}"))

    # ------------------------------------------------------------------ words, saving, closing

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.texts
        self.root.title(text("ui_window_title"))
        for page, key in ((self.main_page, "main"), (self.run_view, "run"), (self.form_view, "advanced")):
            self.tabs.tab(page, text=text(f"ui_tab_{key}"))
        for key in ("input_dir", "output_dir"):
            self.labels[key].configure(text=text(f"option.{key}.label"))
        self.labels["quality"].configure(text=text("ui_quality"))
        self.labels["language"].configure(text=text("ui_tab_language"))
        for choose in self.browse:
            choose.configure(text=text("ui_choose_folder"))
        self.gpu_box.configure(text=text("option.use_gpu_phase5.label"))
        self.quality.configure(values=[text(f"ui_quality_{name}") for name in QUALITY_PRESETS])
        self._show_quality()
        codes = available_languages()
        self.language.configure(values=[text(f"option.language.choice.{code}") for code in codes])
        self.language.current(codes.index(self.texts.language))
        self.start_button.configure(text=text("ui_start"))
        self.stop_button.configure(text=text("ui_stop"))
        self.run_view.retranslate()
        self.form_view.retranslate()

    def _save(self) -> None:
        try:
            zemosaic_config.save_config(self.form.to_mapping(), self.config_path)
        except (SaveFailed, SettingsError) as error:
            self.note.set(self.texts.message(error.key, error.values))

    def ask_to_close(self) -> bool:
        """Ask whether the run in progress may be stopped."""
        question = f"{self.texts('ui_close_question')}\n\n{self.texts('ui_close_note')}"
        return bool(messagebox.askyesno(self.texts("ui_close_title"), question, parent=self.root))

    def close(self) -> None:
        """Close the window; a run in progress is stopped first, if the user agrees."""
        if not self.controller.is_active:
            self._destroy()
        elif self._closing or self.ask_to_close():
            self._closing = True
            self.controller.stop()

    def _destroy(self) -> None:
        self._save()
        self.root.after_cancel(self._tick_id)
        self.root.destroy()


def run_tk_main(config_path: str | None = None) -> int:
    """Open the Tk application and return its exit code."""
    root = tk.Tk()
    ZeMosaicGUI(root, Path(config_path) if config_path else None)
    root.mainloop()
    return 0


if __name__ == "__main__":
    sys.exit(run_tk_main())
