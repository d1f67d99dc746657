"""The table of what must hold, on the real Forge: Forge Neo's, and what is the same on reForge."""

from __future__ import annotations

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_a1111 import (  # noqa: F401 - collected here too, with this module's fixtures
    before,
    test_a_third_lora_stays_added,
    test_add_normally_says_so,
    test_each_mode_is_what_it_says,
    test_every_clock_runs_with_every_kind_of_sampler,
    test_every_sampler,
    test_img2img_and_inpainting_are_fused_too,
    test_loras_picked_in_the_accordion_need_not_be_in_the_prompt,
    test_the_default_rule_makes_a_picture_of_its_own_and_repeats_it,
    test_the_hires_pass_may_have_its_own_prompt,
    test_the_infotext_names_pair_and_rule,
    test_the_inner_pass_of_another_extension_is_fused_if_it_lets_us,
    test_the_winner_everywhere_is_the_only_lora,
)
from tests.hosts.test_neo import (  # noqa: F401
    _plain_options,
    test_a_bad_job_is_refused_in_a_sentence,
    test_a_compiled_model_is_refused_in_a_sentence,
    test_everything_comes_back,
    test_other_layers,
    test_sdxl,
)
from tests.hosts.test_prompt_tags import (  # noqa: F401
    test_a_hires_prompt_may_have_a_tag_of_its_own,
    test_a_tag_fuses_without_a_tick,
    test_what_is_wrong_is_422_and_a_sentence,
)
from tests.hosts.test_reforge import test_a_refiner_is_followed  # noqa: F401
from tests.hosts.test_scripts import test_built_in_scripts  # noqa: F401
from tests.hosts.test_types import (  # noqa: F401
    loras,
    test_full_matrix_lokr,
    test_the_unconditional_rows,
    test_the_unconditional_rows_beside_a_third_dora,
)


@pytest.fixture(scope="session")
def webui(forge: FamilyWebUI) -> FamilyWebUI:
    """The WebUI of the shared cases."""
    return forge
