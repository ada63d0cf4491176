"""Everything a window needs to know, without any toolkit.

Who calls whom: a window (``zemosaic_gui_qt``, ``zemosaic_gui``) starts a run with `run_controller`, which keeps a
`child_process` and feeds its events to `run_state`; `eta` and `compute_state` read that state. `form_model` and
`presets` draw the options from the catalogue; `ui_memory` is what the window remembers by itself; `texts` finds
every word. The filter dialog stands on `filter_model` (facts, rules, choice), `sky_view` (projection, selection,
colours) and `plan_preview` (what the choice becomes); its slow work is in `jobs`, run as child processes. The
viewer stands on `mosaic_image` (any part at any zoom), `part_renderer` (a thread that makes pictures) and
`footprints`; the growing picture of a run on `growing_mosaic` and `picture_loader`.

``qt`` and ``tk`` only draw these models and forward what the user does; no image arithmetic, no file formats and
no list of settings there.
"""
