"""The public names stand in their doors: defined there, not only passed through."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NAMES = {
    "zemosaic_utils": """
        GPU_AVAILABLE gpu_is_available ensure_cupy_pool_initialized free_cupy_memory_pools gpu_memory_sufficient
        _percentiles_gpu detect_and_correct_hot_pixels detect_and_correct_hot_pixels_gpu
        estimate_background_map estimate_background_map_gpu gpu_assemble_final_mosaic_reproject_coadd
        gpu_assemble_final_mosaic_incremental gpu_reproject_and_coadd reproject_and_coadd_wrapper
        load_and_validate_fits debayer_image save_fits_image stretch_auto_asifits_like
        stretch_auto_asifits_like_gpu make_radial_weight_map crop_image_and_wcs validate_wcs_header
        compute_intertile_affine_calibration
    """,
    "zemosaic_align_stack": """
        gpu_stack_winsorized gpu_stack_kappa gpu_stack_linear stack_winsorized_sigma_clip stack_kappa_sigma_clip
        stack_linear_fit_clip stack_aligned_images align_images_in_group equalize_rgb_medians_inplace
        _gpu_nanpercentile _iter_row_chunks _has_gpu_budget
    """,
    "zemosaic_worker": """
        run_hierarchical_mosaic run_hierarchical_mosaic_process create_master_tile
        assemble_final_mosaic_reproject_coadd assemble_final_mosaic_incremental
    """,
    "lecropper": """
        detect_autocrop_rgb mask_altaz_artifacts apply_altaz_cleanup load_fits_rgb save_cropped_fits quality_crop
        altZ_cleanup
    """,
    "zequalityMT": "quality_metrics",
    "zemosaic_config": """
        DEFAULT_CONFIG load_config save_config get_config_path detect_astap_installation
        get_astap_executable_path get_astap_data_directory_path get_astap_default_search_radius
        get_astap_default_downsample get_astap_default_sensitivity get_astap_max_instances
    """,
}


def defined_in(door: str) -> set[str]:
    """Names a file defines at its top level, including inside an `if`; an import defines nothing."""
    found: set[str] = set()
    waiting = list(ast.parse((ROOT / f"{door}.py").read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Assign():
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name()):
                found.add(node.target.id)
            case ast.If() | ast.Try():
                waiting += [*node.body, *node.orelse]
    # A module-level `__getattr__` that answers a name is how a name can be computed when it is asked for.
    source = (ROOT / f"{door}.py").read_text(encoding="utf-8")
    if "__getattr__" in found:
        found |= {name for name in NAMES[door].split() if f'"{name}"' in source}
    return found


@pytest.mark.parametrize(
    ("door", "name"), [(door, name) for door, names in NAMES.items() for name in names.split()]
)
def test_name_is_defined_in_its_door(door, name):
    assert (ROOT / f"{door}.py").is_file(), f"{door}.py is missing"
    assert name in defined_in(door)
