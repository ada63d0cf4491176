"""Every option by group in Tk, drawn from the form model."""

from __future__ import annotations

import tkinter as tk
from tkinter import filedialog, ttk

from zemosaic_ui.form_model import FormModel
from zemosaic_ui.texts import Texts

__all__ = ["FormView"]

WRAP_PX = 640


class _Row:
    """One option: label, control, unit, way back, explanation."""

    def __init__(self, parent: ttk.Frame, form: FormModel, texts: Texts, key: str, line: int) -> None:
        self.form, self.texts, self.key = form, texts, key
        self.option = form.fields[key].option
        self.caption, self.unit = ttk.Label(parent), ttk.Label(parent, foreground="#777777")
        self.note = ttk.Label(parent, wraplength=WRAP_PX, foreground="#777777")
        self.value: tk.Variable = tk.BooleanVar() if self.option.type == "bool" else tk.StringVar()
        self._loading = False
        self.control = self._make_control(parent)
        self.reset = ttk.Button(parent, text="↺", width=3, command=lambda: form.reset(key))
        self.caption.grid(row=line, column=0, sticky="w", padx=(0, 10), pady=(6, 0))
        self.control.grid(row=line, column=1, sticky="ew", pady=(6, 0))
        self.unit.grid(row=line, column=2, sticky="w", padx=6)
        self.reset.grid(row=line, column=3)
        self.note.grid(row=line + 1, column=1, columnspan=3, sticky="w")
        self.value.trace_add("write", self._on_typed)
        self.show()

    def _make_control(self, parent: ttk.Frame) -> tk.Widget:
        option = self.option
        if option.type == "bool":
            return ttk.Checkbutton(parent, variable=self.value)
        if option.type == "choice":
            combo = ttk.Combobox(parent, state="readonly")
            combo.bind("<<ComboboxSelected>>", lambda _event: self._set(option.choices[combo.current()]))
            return combo
        entry = ttk.Entry(parent, textvariable=self.value, show="*" if option.type == "secret" else "")
        if option.type in ("folder", "file"):
            entry.bind("<Double-Button-1>", self._on_browse)
        return entry

    def _on_browse(self, _event: object) -> None:
        is_folder = self.option.type == "folder"
        chosen = filedialog.askdirectory() if is_folder else filedialog.askopenfilename()
        if chosen:
            self._set(chosen)

    def _on_typed(self, *_args: object) -> None:
        if not self._loading:
            self._set(self.texts.typed(self.option.type, self.value.get()))

    def _set(self, value: object) -> None:
        self.form.set(self.key, value)

    def show(self) -> None:
        """Show what the model holds."""
        field = self.form.fields[self.key]
        self._loading = True
        if isinstance(self.control, ttk.Combobox):
            self.control.set(self.texts(self.option.choice_text_key(field.value)))
        elif self.option.type == "bool":
            self.value.set(field.value)
        elif self.texts.typed(self.option.type, self.value.get()) != str(field.typed):
            self.value.set(self.texts.field(field.typed))
        self._loading = False
        self.reset.configure(state="disabled" if field.is_default else "normal")
        if field.problem is None:
            self.note.configure(text=self.texts(f"{self.option.text_key}.help"), foreground="#777777")
        else:
            values = {**field.problem.values, "option": self.texts(f"{self.option.text_key}.label")}
            self.note.configure(text=self.texts(field.problem.key, **values), foreground="#b23a2a")

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text, option = self.texts, self.option
        self.caption.configure(text=text(f"{option.text_key}.label"))
        parts = [text(f"unit.{option.unit}")] if option.unit else []
        if option.type in ("int", "float", "pair"):
            parts.append(text.written(f"{option.minimum:g} – {option.maximum:g}"))
        if option.special:
            parts.append(text.written(f"{option.minimum:g}") + f" = {text(f'special.{option.special}')}")
        self.unit.configure(text="  ".join(parts))
        if isinstance(self.control, ttk.Combobox):
            self.control.configure(values=[text(option.choice_text_key(choice)) for choice in option.choices])
        self.show()


class FormView(ttk.Frame):
    """A scrolled column of groups with a search above it."""

    def __init__(self, parent: tk.Misc, form: FormModel, texts: Texts) -> None:
        super().__init__(parent, padding=8)
        self.form, self.texts = form, texts
        self.words = tk.StringVar()
        self.search_label = ttk.Label(self)
        self.search_label.grid(row=0, column=0, sticky="w")
        ttk.Entry(self, textvariable=self.words).grid(row=0, column=1, sticky="ew", padx=8, pady=(0, 8))
        self.words.trace_add("write", lambda *_args: self.apply_search())
        self.canvas = tk.Canvas(self, highlightthickness=0)
        bar = ttk.Scrollbar(self, orient="vertical", command=self.canvas.yview)
        self.canvas.configure(yscrollcommand=bar.set)
        self.canvas.grid(row=1, column=0, columnspan=2, sticky="nsew")
        bar.grid(row=1, column=2, sticky="ns")
        self.rowconfigure(1, weight=1)
        self.columnconfigure(1, weight=1)
        self.inner = ttk.Frame(self.canvas)
        self._window = self.canvas.create_window((0, 0), window=self.inner, anchor="nw")
        self.inner.bind(
            "<Configure>", lambda _event: self.canvas.configure(scrollregion=self.canvas.bbox("all"))
        )
        self.canvas.bind(
            "<Configure>", lambda event: self.canvas.itemconfigure(self._window, width=event.width)
        )
        for event, step in (("<Button-4>", -1), ("<Button-5>", 1)):
            self.canvas.bind_all(event, lambda _event, step=step: self.canvas.yview_scroll(step * 3, "units"))
        self.canvas.bind_all(
            "<MouseWheel>", lambda e: self.canvas.yview_scroll(-1 if e.delta > 0 else 1, "units")
        )
        self.groups: dict[str, ttk.LabelFrame] = {}
        self.rows: dict[str, _Row] = {}
        for group, fields in form.groups().items():
            frame = ttk.LabelFrame(self.inner, padding=10)
            frame.columnconfigure(1, weight=1)
            self.groups[group] = frame
            for number, field in enumerate(fields):
                key = field.option.key
                self.rows[key] = _Row(frame, form, texts, key, 2 * number)
        form.on_change(self._on_changed)
        self.retranslate()
        self.apply_search()

    def _on_changed(self, key: str) -> None:
        if key in self.rows:
            self.rows[key].show()

    def apply_search(self) -> None:
        """Show the groups that hold an option that fits."""
        found = set(self.form.search(self.words.get(), self.texts))
        for frame in self.groups.values():
            frame.pack_forget()
        for group, fields in self.form.groups().items():
            keys = [field.option.key for field in fields]
            if found.intersection(keys):
                self.groups[group].pack(fill="x", padx=4, pady=6)
            for key in keys:
                made = self.rows[key]
                for widget in (made.caption, made.control, made.unit, made.reset, made.note):
                    (widget.grid if key in found else widget.grid_remove)()

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        self.search_label.configure(text=self.texts("ui_search_options"))
        for group, frame in self.groups.items():
            frame.configure(text=self.texts(f"group.{group}"))
        for made in self.rows.values():
            made.retranslate()
